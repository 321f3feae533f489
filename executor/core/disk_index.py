"""The index of the SSD tier: which block files are whole and durable. Bytes in, values out; the shell does the writing.

Theory of operation. The index is a header and then records of equal size, only ever appended. HOLD says that a file has all that
the named dataset version needs of its block, and was synced before the record was; DROP takes that back. Each record
carries its own checksum and no record crosses a sector, so a torn or damaged one costs itself and nothing else. What has no good HOLD
is not there. A block may have several files in the course of time, each with a serial number that is part of the file's
name. A keeper uses none twice, and begins above those of all files and records that it found: a number may come again only when
neither the file nor a record of it is left:

    blocks/<dataset>.<generation>.<block>-<serial>

At a start the records are held against the names of the files (`reconcile`): no file is opened, let alone read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import NamedTuple

from crc32c import crc32c

from stoker.executor.block import BlockName

MAGIC = b"STKRIDX\x01"
FORMAT_VERSION = 1
RECORD_BYTES = 64

_HEADER = struct.Struct("<I8sHH16s32x")  # checksum magic version flags cluster
_RECORD = struct.Struct(
    "<IHHQQIIQIIQ8x"
)  # checksum kind flags serial dataset generation block data version - cached
_HOLD, _DROP = 1, 2
_FILE_NAME = re.compile(r"(\d{1,20})\.(\d{1,10})\.(\d{1,10})-(\d{1,20})")

assert _HEADER.size == _RECORD.size == RECORD_BYTES


class BlockFileName(NamedTuple):
    """One file of a block."""

    name: BlockName
    serial: int

    def __str__(self) -> str:
        return f"{self.name.dataset_id}.{self.name.generation}.{self.name.block_index}-{self.serial}"


class Record(NamedTuple):
    """A HOLD. `version`: the lowest dataset version that the block is known to be full for; `cached_bytes`: of its files."""

    file: BlockFileName
    data_bytes: int
    version: int
    cached_bytes: int


class Replay(NamedTuple):
    """What an index says. `bad_count`: damaged records; `torn_bytes`: of an append at the end that was cut short."""

    held: dict[int, Record]  # by serial
    dropped: frozenset[int]  # serials
    bad_count: int
    torn_bytes: int


class Reconciled(NamedTuple):
    """`held` have their files; `lost` have not; `unrecorded` are files to look into, `doomed` those to unlink."""

    held: tuple[Record, ...]
    lost: tuple[Record, ...]
    unrecorded: tuple[BlockFileName, ...]
    doomed: tuple[BlockFileName, ...]


def parse_file_name(text: str) -> BlockFileName | None:
    """Return what a file's name says; None: it is no block's.

    >>> parse_file_name("3.1.9-12")
    BlockFileName(name=BlockName(dataset_id=3, generation=1, block_index=9), serial=12)
    """
    match = _FILE_NAME.fullmatch(text)
    if match is None:
        return None
    found = BlockFileName(BlockName(int(match[1]), int(match[2]), int(match[3])), int(match[4]))
    return found if str(found) == text else None


def encode_header(cluster: bytes) -> bytes:
    return _sealed(_HEADER.pack(0, MAGIC, FORMAT_VERSION, 0, cluster))


def encode_hold(record: Record) -> bytes:
    name, serial = record.file
    return _sealed(
        _RECORD.pack(0, _HOLD, 0, serial, *name, record.data_bytes, record.version, 0, record.cached_bytes)
    )


def encode_drop(file: BlockFileName) -> bytes:
    return _sealed(_RECORD.pack(0, _DROP, 0, file.serial, *file.name, 0, 0, 0, 0))


def read_header(data: bytes) -> tuple[int, bytes] | None:
    """Return (format, cluster) of an index; None: its header is missing or damaged, which costs the records nothing."""
    head = data[:RECORD_BYTES]
    if not _is_sound(head) or head[4:12] != MAGIC:
        return None
    _, _, version, _, cluster = _HEADER.unpack(head)
    return version, cluster


def replay(data: bytes) -> Replay:
    """Return what the records after the header say; never refuses. O(records)."""
    held: dict[int, Record] = {}
    dropped: set[int] = set()
    end = len(data) - len(data) % RECORD_BYTES
    bad = bad_at_end = 0
    for place in range(RECORD_BYTES, end, RECORD_BYTES):
        raw = data[place : place + RECORD_BYTES]
        if not _is_sound(raw):
            bad_at_end += 1
            continue
        bad, bad_at_end = bad + bad_at_end, 0
        _, kind, _, serial, dataset, generation, block, data_bytes, version, _, cached = _RECORD.unpack(raw)
        if kind == _HOLD and serial not in dropped:
            file = BlockFileName(BlockName(dataset, generation, block), serial)
            held[serial] = Record(file, data_bytes, version, cached)
        elif kind == _DROP:
            dropped.add(serial)
            held.pop(serial, None)
    return Replay(held, frozenset(dropped), bad, bad_at_end * RECORD_BYTES + len(data) - end)


def reconcile(index: Replay, files: Iterable[BlockFileName], *, trusts_unrecorded: bool) -> Reconciled:
    """Hold an index against the files that there are.

    `trusts_unrecorded`: what was written to a file without a record is surely still there, because the machine has been up
    ever since; else only what was synced before its record is, and such a file is of no use.
    """
    there = set(files)
    held: dict[BlockName, Record] = {}
    lost = []
    doomed: set[BlockFileName] = set()
    for record in sorted(index.held.values(), key=lambda r: r.file.serial):
        if record.file not in there:
            lost.append(record)
            continue
        if record.file.name in held:
            doomed.add(held[record.file.name].file)
        held[record.file.name] = record
    known = {record.file for record in held.values()} | doomed
    unrecorded: dict[BlockName, BlockFileName] = {}
    for file in sorted(there - known, key=lambda f: f.serial):
        if not trusts_unrecorded or file.serial in index.dropped or file.name in held:
            doomed.add(file)
            continue
        if file.name in unrecorded:
            doomed.add(unrecorded[file.name])
        unrecorded[file.name] = file
    by_serial = sorted(held.values(), key=lambda r: r.file.serial)
    return Reconciled(tuple(by_serial), tuple(lost), tuple(unrecorded.values()), tuple(sorted(doomed)))


def _sealed(raw: bytes) -> bytes:
    return crc32c(raw[4:]).to_bytes(4, "little") + raw[4:]


def _is_sound(raw: bytes) -> bool:
    return len(raw) == RECORD_BYTES and int.from_bytes(raw[:4], "little") == crc32c(raw[4:])
