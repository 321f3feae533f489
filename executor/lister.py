"""The lister: lists an under store and builds the manifest of a dataset version. A child process of the scheduler.

`--schemes` prints the URL schemes that can be opened, as a JSON list. Else started with one JSON object on stdin (`Order` has its fields). Says on stdout, a JSON
object a line: `{"files", "bytes"}` about twice a second (with `"warning"` where something was passed over, WARNINGS_MAX in all),
at last `{"done": {...}}` or, with exit code 1, `{"error": "one line"}`. The manifest's root and parts are then files in `out`,
each named by its digest.

Under-store libraries live here and in fillers only. Nobody waits for this process' clean-up: if stdout breaks, the
scheduler is gone and the process ends at once.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import fsspec

from stoker.executor.manifest import BuiltManifest, FileRow, ManifestError, build, map_manifest
from stoker.executor.process import start_logging
from stoker.executor.under_store import UnderStoreError, one_line, open_under_store

PROGRESS_INTERVAL_MS = 500
WARNINGS_MAX = 20  # told one by one; the others are only counted
ORDER_BYTES_MAX = 16 * 1024 * 1024

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """What to list, and the identity of the manifest to build. `previous` is a mapped manifest's path, or None."""

    source: str
    options: dict[str, str]
    cluster: bytes
    dataset_id: int
    generation: int
    version: int
    slot_bytes: int
    previous: str | None
    out: str


class Report:
    """Says what happens, from any thread."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.files = 0
        self.bytes = 0
        self.warning_count = 0

    def count(self, rows: Iterator[FileRow]) -> Iterator[FileRow]:
        """Yield `rows`, counted."""
        for row in rows:
            self.files += 1
            self.bytes += row.size
            yield row

    def warn(self, text: str) -> None:
        """Tell of something that was passed over."""
        self.warning_count += 1
        if self.warning_count <= WARNINGS_MAX:
            log.warning("%s", text)
            self._say({"files": self.files, "bytes": self.bytes, "warning": one_line(text)})

    def say_progress(self) -> None:
        """Tell the counts about twice a second, until `end`."""
        while not self._ended.wait(PROGRESS_INTERVAL_MS / 1000):
            self._say({"files": self.files, "bytes": self.bytes})

    def end(self, message: dict[str, Any]) -> None:
        """Tell the last line."""
        self._ended.set()
        self._say(message)

    def _say(self, message: dict[str, Any]) -> None:
        with self._lock:
            try:
                self._out.write(json.dumps(message) + "\n")
                self._out.flush()
            except OSError:
                os._exit(1)  # the scheduler is gone


def make_manifest(order: Order, report: Report) -> BuiltManifest:
    """List the source, write root and parts into `order.out`, and return what was built.

    :raises UnderStoreError, ManifestError, OSError: see the message.
    """
    store = open_under_store(order.source, order.options)
    built = build(
        report.count(store.list(report.warn)),
        cluster=order.cluster,
        dataset_id=order.dataset_id,
        generation=order.generation,
        version=order.version,
        slot_bytes=order.slot_bytes,
        previous=map_manifest(order.previous) if order.previous else None,
    )
    if not built.files:
        skipped = f" ({report.warning_count} things were passed over)" if report.warning_count else ""
        raise UnderStoreError(f"there are no files in {order.source}{skipped}; is it the right path?")
    for digest, data in (*built.parts.items(), (built.digest, built.root)):
        _write(os.path.join(order.out, digest), data)
    return built


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _read_order(stream: TextIO) -> Order:
    """:raises ValueError, TypeError: not an order."""
    fields = json.loads(stream.read(ORDER_BYTES_MAX))
    known = {field.name for field in dataclasses.fields(Order)}
    fields = {name: value for name, value in fields.items() if name in known}
    return Order(**{**fields, "cluster": bytes.fromhex(fields["cluster"])})


def _done(order: Order, built: BuiltManifest) -> dict[str, Any]:
    names = ("digest", "files", "bytes", "address_bytes", "block_bytes", "block_count", "pg_count")
    identity = {"generation": order.generation, "version": order.version}
    return {"done": {name: getattr(built, name) for name in names} | identity}


def main(arguments: Sequence[str] = ()) -> int:
    start_logging("lister")
    if list(arguments) == ["--schemes"]:
        print(json.dumps(fsspec.available_protocols()))
        return 0
    report = Report(sys.stdout)
    try:
        order = _read_order(sys.stdin)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        report.end({"error": f"the lister wants one JSON object on stdin, as its module says: {error!r}"})
        return 1
    threading.Thread(target=report.say_progress, name="progress", daemon=True).start()
    try:
        built = make_manifest(order, report)
    except (UnderStoreError, ManifestError) as error:
        report.end({"error": one_line(error)})
        return 1
    except OSError as error:
        report.end({"error": one_line(f"cannot list {order.source}: {error}")})
        return 1
    report.end(_done(order, built))
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # under-store libraries leave threads and loops behind
