"""What a journal's bytes mean, for the commands that look at one: the catalog that they lead to, and what it needs.

Nothing here writes, and nothing here runs beside a scheduler's loop: these commands have a process of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from stoker.executor.manifest import ManifestError, part_digests
from stoker.framework.core import invariants
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import CodecError, NewerError, decode_entry, named
from stoker.framework.core.fleet import Fleet
from stoker.framework.model import Settings
from stoker.framework.snapshots import decode_snapshot
from stoker.zk.errors import Corrupt, TooNew
from stoker.zk.home import Batch, Snapshot

SECRET_FIELDS = frozenset({"secret"})  # of any entry: never shown
SHOWN_CHARACTERS_MAX = 100  # of one value, for people


class Described(NamedTuple):
    """An entry as plain values: bytes in hex, secrets left out."""

    kind: str
    fields: dict[str, Any]


class State:
    """The catalog that snapshots and batches lead to, applied in their order."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.next_index = 0

    def apply(self, part: Snapshot | Batch) -> None:
        """:raises Corrupt, TooNew: it does not follow from what was before, or is not to be read."""
        if isinstance(part, Snapshot):
            self.catalog = decoded(part)
            self.next_index = part.next_index
            return
        if part.first_index != self.next_index:
            raise Corrupt(f"record {part.first_index} comes where record {self.next_index} should be")
        for record in part.records:
            with _located(f"record {self.next_index}"):
                self.catalog.apply(decode_entry(record))
            self.next_index += 1

    def check(self) -> None:
        """:raises Corrupt: the catalog breaks one of its invariants."""
        with _located(f"the state before record {self.next_index}"):
            invariants.check(self.catalog, Fleet(Settings()))

    def words(self) -> dict[str, Any]:
        """Return what people want to know of a cluster, in short."""
        catalog = self.catalog
        return {
            "cluster": catalog.cluster.hex(),
            "name": catalog.name,
            "framework_id": catalog.framework_id,
            "datasets": len(catalog.datasets),
            "jobs": len(catalog.jobs),
            "slots": len(catalog.slots),
        }


class _located:
    """Turn what replay may raise into one line that names the place."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CodecError):
            raise (TooNew if isinstance(error, NewerError) else Corrupt)(f"{self._where}: {error}") from error
        if isinstance(error, AssertionError | KeyError | TypeError | ValueError):
            raise Corrupt(f"{self._where} does not follow from what is before it: {error!r}") from error


def decoded(snapshot: Snapshot) -> Catalog:
    """Return the catalog of a snapshot. :raises Corrupt, TooNew: it is none."""
    with _located(f"the snapshot before record {snapshot.next_index}"):
        return decode_snapshot(snapshot.data)


def needed_blobs(
    catalog: Catalog, get_blob: Callable[[str], bytes | None]
) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield (dataset and version, digest, bytes or None) of each blob that the catalog points to, roots first; each once.

    :raises Corrupt: a blob is damaged.
    """
    seen: set[str] = set()
    for dataset in catalog.datasets.values():
        for version in dataset.versions:
            if version.digest in seen:
                continue
            where = f"dataset {dataset.name!r} version {version.version}"
            root = get_blob(version.digest)
            seen.add(version.digest)
            yield where, version.digest, root
            for digest in parts_of(root, where):
                if digest not in seen:
                    seen.add(digest)
                    yield where, digest, get_blob(digest)


def parts_of(root: bytes | None, where: str) -> list[str]:
    """Return the digests of the blobs that a manifest's root points to; none of no root. :raises Corrupt: it is none."""
    try:
        return [] if root is None else list(part_digests(root))
    except ManifestError as error:
        raise Corrupt(f"the manifest of {where} is none: {error}") from error


def describe(record: bytes, index: int) -> Described:
    """Return an entry as people read it. :raises Corrupt, TooNew: it is none, or a newer program's."""
    with _located(f"record {index}"):
        entry = decode_entry(record)
        fields = named(entry)
        return Described(type(entry).__name__, {k: _shown(k, v) for k, v in fields.items()})


def shorten(fields: dict[str, Any]) -> str:
    """Return `name=value name=value`, long values cut."""
    return " ".join(f"{name}={_short(value)}" for name, value in fields.items())


def all_words(words: dict[str, Any], order: Iterable[str]) -> str:
    """Return `cluster=..., name=...` of what is there, in this order."""
    return ", ".join(
        f"{name.replace('_', ' ')} {words[name]}" for name in order if words.get(name) not in (None, "")
    )


def _shown(name: str, value: Any) -> Any:
    if name in SECRET_FIELDS:
        return "(not shown)"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: _shown(k, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_shown("", item) for item in value]
    return value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value and " " not in value else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[: SHOWN_CHARACTERS_MAX - 3]}..."
