"""Looking at a local journal without its lock; see onlooker and local.

A leader may be at work meanwhile. What shows of that, and is no damage: a batch whose bytes are not all there yet at the
end of the last segment; segments and snapshots that are gone since they were listed; records of a newer epoch than the
one that was read a moment ago. All three are looked at again before they are called damage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from stoker.zk.blobs import LocalBlobs
from stoker.zk.codec import (
    HEADER_BYTES,
    LEVEL_MIN,
    Term,
    is_payload,
    read_batch_header,
    read_records,
    read_snapshot,
    read_term,
)
from stoker.zk.disk import Disk
from stoker.zk.errors import Corrupt, Unavailable
from stoker.zk.home import Batch, Snapshot
from stoker.zk.journal import SNAPSHOT_BYTES_MAX
from stoker.zk.lock import lock_holder
from stoker.zk.onlooker import Header
from stoker.zk.segments import (
    SEGMENT_BYTES_MAX,
    is_torn,
    list_segments,
    list_snapshots,
    snapshot_name,
)

LOOKS_MAX = 5  # at what may be a write or a cut under way; each finds the leader further on


class _Part(NamedTuple):
    """A segment as it was a moment ago: whole batches, then what does not read."""

    batches: list[Batch]
    stop_index: int
    torn_bytes: int


class _Gone(Exception):
    """A segment was forgotten since it was listed."""


class LocalOnlooker:
    """See the module, and onlooker.Onlooker for what each call promises."""

    def __init__(self, directory: str) -> None:
        """Nothing is touched yet."""
        self._directory = os.path.abspath(directory)
        self._blobs = LocalBlobs(self._in("blobs"), Disk())

    def header(self) -> Header:
        """See Onlooker.header. Only the last segment is looked into; where that is damaged, its records do not count."""
        with self._translated():
            return self._header()

    def snapshot(self, index: int | None = None) -> Snapshot | None:
        """See Onlooker.snapshot."""
        with self._translated():
            for _ in range(LOOKS_MAX):
                indexes = [i for i in self._snapshot_indexes() if index in (None, i)]
                if not indexes:
                    return None
                for found in reversed(indexes):
                    snapshot = self._read_snapshot(found)
                    if snapshot is not None:
                        return snapshot
            raise Corrupt(f"{self._snapshot_path(indexes[-1])} is damaged")

    def log(self, from_index: int = 0) -> Iterator[Batch]:
        """See Onlooker.log. A segment at a time is held in memory."""
        with self._translated():
            index = from_index
            while True:
                try:
                    for batch in self._read_on(index):
                        yield batch
                        index = batch.first_index + len(batch.records)
                    return
                except _Gone:
                    continue  # with what is there now: that record, or the oldest after it

    def blob_digests(self) -> list[str]:
        with self._translated():
            return self._blobs.digests() if os.path.isdir(self._in("blobs")) else []

    def get_blob(self, digest: str) -> bytes | None:
        with self._translated():
            return self._blobs.get(digest)

    def close(self) -> None:
        """Nothing is kept open."""

    # --- parts

    def _header(self) -> Header:
        if not os.path.isdir(self._directory):
            raise Unavailable(f"there is no journal in {self._directory}: no such directory")
        for _ in range(LOOKS_MAX):
            snapshots = self._snapshot_indexes()
            segments = self._segments()
            try:
                sizes = [os.stat(path).st_size for _, path in segments]
                last = self._read_part(segments[-1], 0, is_last=True) if segments else None
            except (FileNotFoundError, _Gone):
                continue
            except Corrupt:
                last = _Part([], segments[-1][0], 0)  # `log` will say what is wrong
            stop_index = last.stop_index if last is not None else 0
            return Header(
                place=f"file:{self._directory}",
                term=self._term(must_be=bool(segments or snapshots)),
                snapshots=tuple(snapshots),
                first_index=segments[0][0] if segments else max(snapshots, default=0),
                next_index=max(stop_index, *snapshots, 0),
                parts=len(segments),
                part_name="segment",
                log_bytes=sum(sizes),
                torn_bytes=last.torn_bytes if last is not None else 0,
                members=self._members(),
            )
        raise Unavailable(f"the journal in {self._directory} changes faster than it can be read")

    def _read_on(self, index: int) -> Iterator[Batch]:
        """Yield the batches from `index`, or the oldest, on. :raises _Gone: a segment went; what was yielded stands."""
        listed = self._segments()
        place = max((i for i, (first_index, _) in enumerate(listed) if first_index <= index), default=0)
        current = listed[place] if listed else None
        epoch = 0
        while current is not None:
            # Listed before it is read: where there is a next one, this one is finished.
            following = next((item for item in self._segments() if item[0] > current[0]), None)
            part = self._read_part(current, epoch, is_last=following is None)
            for batch in part.batches:
                stop_index, epoch = batch.first_index + len(batch.records), batch.epoch
                if stop_index > index:
                    yield _from(batch, index)
                    index = stop_index
            if following is None:
                if self._segments()[-1:] in ([current], []):
                    return
                continue
            if following[0] != part.stop_index:
                what = "twice" if following[0] < part.stop_index else "after a gap"
                raise Corrupt(
                    f"{following[1]} begins with record {following[0]} {what}: record {part.stop_index} should come next"
                )
            current = following

    def _segments(self) -> list[tuple[int, str]]:
        return list_segments(self._in("log")) if os.path.isdir(self._in("log")) else []

    def _read_part(self, segment: tuple[int, str], epoch: int, *, is_last: bool) -> _Part:
        first_index, path = segment
        for look in range(LOOKS_MAX):
            try:
                with open(path, "rb") as file:
                    data = memoryview(file.read(SEGMENT_BYTES_MAX + 1))
                if len(data) > SEGMENT_BYTES_MAX:
                    raise Corrupt(f"{path} is above {SEGMENT_BYTES_MAX} bytes, which no segment is")
                return self._parse(data, path, first_index, epoch, is_last=is_last)
            except FileNotFoundError:
                raise _Gone from None
            except Corrupt:
                if look == LOOKS_MAX - 1:
                    raise
                is_last = is_last and self._segments()[-1:] == [segment]
        raise AssertionError("unreachable")

    def _parse(self, data: memoryview, path: str, first_index: int, epoch: int, *, is_last: bool) -> _Part:
        batches: list[Batch] = []
        offset, index = 0, first_index
        while offset < len(data):
            header = read_batch_header(data[offset : offset + HEADER_BYTES])
            payload = b"" if header is None else data[offset + HEADER_BYTES : offset + header.frame_bytes]
            if header is None or not is_payload(header, payload):
                if not is_last or not is_torn(data, offset, header):
                    raise Corrupt(f"{path} is damaged at byte {offset}, where record {index} should be")
                break
            if header.first_index != index:
                what = "twice" if header.first_index < index else "after a gap"
                raise Corrupt(
                    f"{path} holds record {header.first_index} {what}: record {index} should come next"
                )
            if header.epoch < epoch or header.epoch > self._term(must_be=True).epoch:
                raise Corrupt(f"{path} holds record {index} of epoch {header.epoch}, after epoch {epoch}")
            batches.append(Batch(index, header.epoch, read_records(header, payload)))
            offset, index, epoch = offset + header.frame_bytes, header.stop_index, header.epoch
        return _Part(batches, index, len(data) - offset)

    def _term(self, *, must_be: bool) -> Term:
        try:
            with open(self._in("epoch"), "rb") as file:
                return read_term(file.read())
        except FileNotFoundError:
            if must_be:
                raise Corrupt(
                    f"{self._in('epoch')} is missing, but there are records: the epoch is unknown"
                ) from None
            return Term(0, LEVEL_MIN, "")

    def _read_snapshot(self, index: int) -> Snapshot | None:
        try:
            with open(self._snapshot_path(index), "rb") as file:
                found = read_snapshot(file.read(SNAPSHOT_BYTES_MAX + HEADER_BYTES + 1))
        except FileNotFoundError:
            return None
        if found is None or found[0].next_index != index or found[0].epoch > self._term(must_be=True).epoch:
            return None
        return Snapshot(index, found[1])

    def _snapshot_indexes(self) -> list[int]:
        folder = self._in("snapshots")
        return [index for index, _ in list_snapshots(folder)] if os.path.isdir(folder) else []

    def _snapshot_path(self, index: int) -> str:
        return self._in("snapshots", snapshot_name(index))

    def _members(self) -> tuple[str, ...]:
        holder = lock_holder(self._directory)
        return (holder,) if holder else ()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise Unavailable(f"cannot read the journal in {self._directory}: {reason}") from error

    def _in(self, *names: str) -> str:
        return os.path.join(self._directory, *names)


def _from(batch: Batch, index: int) -> Batch:
    """Return the batch without its records below `index`."""
    skipped = max(0, index - batch.first_index)
    return batch if not skipped else Batch(index, batch.epoch, batch.records[skipped:])
