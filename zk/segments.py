"""The files of a local journal: snapshots, and the log: segments of batches, one after the other. Reading only; `local` writes.

Both are named by an index, twenty digits: a segment by that of its first record, a snapshot by that of the first not in it.

A segment holds whole batches back to back. Only the last
batch of the last segment may be torn, since one batch is written and synced at a time; whatever is torn was never
acknowledged. Anything else that does not read is damage, and damage is for an operator.

How a torn batch is told from damage: its frame reaches the end of the file, and no good batch follows it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from stoker.zk.codec import (
    BATCH_MAGIC,
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    BatchHeader,
    is_payload,
    read_batch_header,
    read_records,
)
from stoker.zk.errors import Corrupt

SEGMENT_BYTES_MAX = 16 * 1024 * 1024
INDEX_DIGITS = 20
_SEGMENT_NAME = re.compile(rf"([0-9]{{{INDEX_DIGITS}}})\.log")
_SNAPSHOT_NAME = re.compile(rf"([0-9]{{{INDEX_DIGITS}}})\.snapshot")


class Segment(NamedTuple):
    """A segment as far as it is good: records [first_index, stop_index) in its first `good_bytes` bytes."""

    path: str
    first_index: int
    stop_index: int
    good_bytes: int
    torn_bytes: int


def segment_name(first_index: int) -> str:
    return f"{first_index:0{INDEX_DIGITS}d}.log"


def snapshot_name(index: int) -> str:
    return f"{index:0{INDEX_DIGITS}d}.snapshot"


def list_segments(directory: str) -> list[tuple[int, str]]:
    """Return (first index, path) of each segment, ascending."""
    return _listed(directory, _SEGMENT_NAME)


def list_snapshots(directory: str) -> list[tuple[int, str]]:
    """Return (index, path) of each snapshot, ascending."""
    return _listed(directory, _SNAPSHOT_NAME)


def _listed(directory: str, pattern: re.Pattern[str]) -> list[tuple[int, str]]:
    names = [match for name in os.listdir(directory) if (match := pattern.fullmatch(name))]
    return sorted((int(match[1]), os.path.join(directory, match[0])) for match in names)


def check_log(directory: str, *, from_index: int, epoch: int) -> list[Segment]:
    """Return the segments that hold records from `from_index` on, every batch checked; nothing is changed.

    A last segment that ends before `from_index` is there too. `epoch` is the newest that the journal knows.

    :raises Corrupt, TooNew: a gap, a record twice, damage before the tail; a newer format version.
    """
    listed = list_segments(directory)
    begins = [i for i, (first, _) in enumerate(listed) if first <= from_index]
    needed = listed[begins[-1] if begins else 0 :]
    segments: list[Segment] = []
    expected, newest_epoch = from_index, 0
    for place, (first_index, path) in enumerate(needed):
        if place and first_index != expected or first_index > from_index and not place:
            raise Corrupt(
                f"{path} begins with record {first_index}, but record {expected} comes next: the journal has a gap"
            )
        is_last = place == len(needed) - 1
        segment, newest_epoch = _check_segment(
            path, first_index, is_last=is_last, epochs=(newest_epoch, epoch)
        )
        segments.append(segment)
        expected = segment.stop_index
    return segments


def _check_segment(
    path: str, first_index: int, *, is_last: bool, epochs: tuple[int, int]
) -> tuple[Segment, int]:
    data = memoryview(_read(path))
    offset, index, newest_epoch = 0, first_index, epochs[0]
    while offset < len(data):
        header = read_batch_header(data[offset : offset + HEADER_BYTES])
        if header is None or not is_payload(header, _payload(data, offset, header)):
            if not is_last or not is_torn(data, offset, header):
                raise Corrupt(f"{path} is damaged at byte {offset}, where record {index} should be")
            break
        _check_order(header, path, index, (newest_epoch, epochs[1]))
        newest_epoch = header.epoch
        index = header.stop_index
        offset += header.frame_bytes
    return Segment(path, first_index, index, offset, len(data) - offset), newest_epoch


def _check_order(header: BatchHeader, path: str, index: int, epochs: tuple[int, int]) -> None:
    if header.first_index != index:
        what = "twice" if header.first_index < index else "after a gap"
        raise Corrupt(f"{path} holds record {header.first_index} {what}: record {index} should come next")
    if not epochs[0] <= header.epoch <= epochs[1]:
        raise Corrupt(
            f"{path} holds record {index} of epoch {header.epoch}, which cannot come after epoch {epochs[0]} "
            f"in a journal of epoch {epochs[1]}"
        )


def is_torn(data: memoryview, offset: int, header: BatchHeader | None) -> bool:
    """Say whether what begins at `offset` can be one write that did not finish."""
    rest = bytes(data[offset:])
    if not rest.strip(b"\0"):
        return True  # the file grew, the bytes never came
    if header is not None:
        return offset + header.frame_bytes >= len(data)
    return len(rest) <= FRAME_BYTES_MAX and not _holds_batch(rest)


def _holds_batch(rest: bytes) -> bool:
    at = rest.find(BATCH_MAGIC, 1)
    while at >= 0:
        header = read_batch_header(memoryview(rest)[at : at + HEADER_BYTES])
        if header is not None and is_payload(header, _payload(memoryview(rest), at, header)):
            return True
        at = rest.find(BATCH_MAGIC, at + 1)
    return False


def _payload(data: memoryview, offset: int, header: BatchHeader) -> memoryview:
    return data[offset + HEADER_BYTES : offset + header.frame_bytes]


def read_log(segments: list[Segment], *, from_index: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the batches of the checked segments from `from_index` on, as (index of the first, records).

    A segment at a time is held in memory.

    :raises Corrupt: a file changed since it was checked.
    """
    for segment in segments:
        if segment.stop_index <= from_index:
            continue
        data = memoryview(_read(segment.path))[: segment.good_bytes]
        offset = 0
        while offset < segment.good_bytes:
            header = read_batch_header(data[offset : offset + HEADER_BYTES])
            if header is None:
                raise Corrupt(f"{segment.path} has changed while it was read")
            if header.stop_index > from_index:
                records = read_records(header, _payload(data, offset, header))
                known = max(0, from_index - header.first_index)
                yield header.first_index + known, records[known:] if known else records
            offset += header.frame_bytes


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(SEGMENT_BYTES_MAX + 1)
    if len(data) > SEGMENT_BYTES_MAX:
        raise Corrupt(f"{path} is above {SEGMENT_BYTES_MAX} bytes, which no segment is")
    return data
