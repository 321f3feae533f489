"""Replay: many records into a catalog. What `decode_entry` and `Catalog.apply` come to record by record, in a third of the time.

A new leader and every follower do nothing else, so three things are spared: a decoder and a check of the fields for each
record (they are decoded and checked together), the entry's own type where `Catalog` reads it by place, and all calls in
between. Where one record is not as this program writes it, all go the slow way, one by one: it says which one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from typing import Any

import msgpack

from stoker.framework.core.catalog import APPLY, BY_PLACE, Catalog
from stoker.framework.core.codec import CodecError, decode_entry, reader, wire_shape

REPLAYED_MAX = 4_096  # records of one call: some 10 ms
TOGETHER = 128  # records that are decoded and checked at once: what they make stays in a core's cache until it is applied


def replay(catalog: Catalog, records: Sequence[bytes], first_index: int) -> None:
    """Apply `records`, the first of which has `first_index`.

    :raises CodecError: one is no entry, or does not follow from what is before it. Those before it are applied then.
    :raises NewerError: one was written by a newer program.
    """
    assert len(records) <= REPLAYED_MAX
    try:
        for start in range(0, len(records), TOGETHER):
            _replay_together(catalog, records[start : start + TOGETHER], first_index + start)
    finally:
        catalog.settle()


def _replay_together(catalog: Catalog, records: Sequence[bytes], first_index: int) -> None:
    place = 0
    try:
        found = _decoded(records)
        if found is None:
            for place, record in enumerate(records):  # noqa: B007 -- looked at when it failed
                catalog.apply(decode_entry(record))
            return
        for place, apply, fields in zip(count(), *found):  # noqa: B007
            apply(catalog, fields)
    except CodecError as error:
        raise type(error)(f"record {first_index + place}: {error}") from error
    except (AssertionError, KeyError) as error:
        raise CodecError(
            f"record {first_index + place} does not follow from what is before it: {error!r}"
        ) from error


_Apply = Callable[[Catalog, Any], None]


def _decoded(records: Sequence[bytes]) -> tuple[Iterable[_Apply], tuple[Any, ...]] | None:
    """Return what applies each record, and its fields; None: one is not `[kind, fields]` with fields of just the right types."""
    data = b"".join(records)
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=max(1, len(data)))
    unpacker.feed(data)
    try:
        kinds, rows = zip(*unpacker, strict=True)
        shapes = list(map(_SHAPES.__getitem__, kinds))
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        return None
    is_plain = (
        len(rows) == len(records)
        and unpacker.tell() == len(data)
        and set(map(type, rows)) == {tuple}
        and list(map(len, rows)) == list(map(len, shapes))
        and list(map(type, chain.from_iterable(rows))) == list(chain.from_iterable(shapes))
    )
    return (map(_APPLY.__getitem__, kinds), rows) if is_plain else None


def _applying(kind: Any) -> _Apply:
    apply, read = APPLY[kind], reader(kind)
    return apply if kind in BY_PLACE else lambda catalog, fields: apply(catalog, read(fields))


_SHAPES = {kind.__name__: wire_shape(kind) for kind in APPLY}
_APPLY = {kind.__name__: _applying(kind) for kind in APPLY}
