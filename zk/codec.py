"""The journal's bytes: batches, snapshots and terms. For ever: every byte is told here. No I/O.

All numbers are little endian and unsigned. A batch is what one append makes durable, wholly or not at all:

    [0, 4)     magic "SKBT"
    [4, 6)     u16  format version, 1
    [6, 8)     u16  flags, 0
    [8, 16)    u64  epoch of the leader that wrote it
    [16, 24)   u64  index of its first record
    [24, 28)   u32  records, at least 1
    [28, 32)   u32  payload bytes
    [32, 36)   u32  CRC-32 of the payload
    [36, 40)   u32  CRC-32 of [0, 36)
    then       the payload: msgpack, an array of the records, each a bin

A snapshot is the state just before a record:

    [0, 4)     magic "SKSN"
    [4, 6)     u16  format version, 1
    [6, 8)     u16  flags, 0
    [8, 16)    u64  epoch of the leader that wrote it
    [16, 24)   u64  index of the first record that is not in it
    [24, 32)   u64  data bytes
    [32, 36)   u32  CRC-32 of the data
    [36, 40)   u32  CRC-32 of [0, 36)
    then       the data

A term says who leads, and the format level:

    [0, 4)     magic "SKTM"
    [4, 6)     u16  format version, 1
    [6, 8)     u16  payload bytes
    [8, 12)    u32  CRC-32 of [0, 8) and the payload
    then       the payload: msgpack, a map {"epoch", "level", "owner"}; unknown keys are kept out of the way

In ZooKeeper a snapshot's data is cut into chunks. What points to them is the snapshot's header, and behind it the name of
the chunks' directory, ASCII. And one more kind of node says that a path is ours:

    [0, 4)     magic "SKZK"
    [4, 6)     u16  format version, 1
    [6, 8)     u16  payload bytes
    [8, 12)    u32  CRC-32 of [0, 8) and the payload
    then       the payload: msgpack, a map {"journal": a uuid}

While a restore writes over a journal, ASCII text stands in the term's place, and it is no term:

    a restore into this journal was not finished: run it again: EPOCH NUMBER INDEX

and a newline, with the newest epoch that was there, the number of the directory where a local one is kept, and the index
of its next record.

The first 8 bytes and the place of a header's CRC are the same in every format version, so that an old program can tell
"newer" from "damaged". What a *level* means (which entries may be written) is the user's; here it is a number that a
program must know: a journal above LEVEL_MAX is refused.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from stoker.zk.errors import Corrupt, TooLarge, TooNew
from stoker.zk.journal import BATCH_BYTES_MAX, RECORD_BYTES_MAX

FORMAT_VERSION = 1
LEVEL_MIN = 1
LEVEL_MAX = 1
BATCH_MAGIC = b"SKBT"
SNAPSHOT_MAGIC = b"SKSN"
TERM_MAGIC = b"SKTM"
SCHEMA_MAGIC = b"SKZK"
UNFINISHED = b"a restore into this journal was not finished: run it again: "

_BATCH = struct.Struct("<4sHHQQIII")
_SNAPSHOT = struct.Struct("<4sHHQQQI")
_TERM = struct.Struct("<4sHHI")
_CRC = struct.Struct("<I")
HEADER_BYTES = 40
assert _BATCH.size + _CRC.size == _SNAPSHOT.size + _CRC.size == HEADER_BYTES

BATCH_RECORDS_MAX = 65_536
# msgpack spends 5 bytes on the array, 2 on a record below 256 bytes, up to 5 on a longer one.
_PAYLOAD_BYTES_MAX = BATCH_BYTES_MAX + 5 + 2 * BATCH_RECORDS_MAX + 3 * (BATCH_BYTES_MAX // 256)
FRAME_BYTES_MAX = HEADER_BYTES + _PAYLOAD_BYTES_MAX
assert FRAME_BYTES_MAX < 512 * 1024  # what a ZooKeeper request may hold
OWNER_BYTES_MAX = 1024
_DIRECTORY = re.compile(r"[0-9a-z-]{1,100}")


class BatchHeader(NamedTuple):
    epoch: int
    first_index: int
    record_count: int
    payload_bytes: int
    payload_crc: int

    @property
    def stop_index(self) -> int:
        """Index of the record after the batch."""
        return self.first_index + self.record_count

    @property
    def frame_bytes(self) -> int:
        return HEADER_BYTES + self.payload_bytes


class SnapshotHeader(NamedTuple):
    epoch: int
    next_index: int
    data_bytes: int
    data_crc: int


class Term(NamedTuple):
    """Who leads since when: `epoch` only grows."""

    epoch: int
    level: int
    owner: str


def check_batch(records: Sequence[bytes]) -> None:
    """:raises TooLarge: a record or all of them together are above the limits of a batch."""
    if len(records) > BATCH_RECORDS_MAX:
        raise TooLarge(f"a batch of {len(records)} records; at most {BATCH_RECORDS_MAX} are allowed")
    for record in records:
        if len(record) > RECORD_BYTES_MAX:
            raise TooLarge(f"a record of {len(record)} bytes; at most {RECORD_BYTES_MAX} are allowed")
    total = sum(map(len, records))
    if total > BATCH_BYTES_MAX:
        raise TooLarge(f"a batch of {total} bytes; at most {BATCH_BYTES_MAX} are allowed")


def encode_batch(records: Sequence[bytes], *, epoch: int, first_index: int) -> bytes:
    """Return the frame of `records`, at least one.

    >>> frame = encode_batch([b"a", b"bc"], epoch=3, first_index=7)
    >>> header = read_batch_header(frame)
    >>> header.epoch, header.first_index, header.stop_index, read_records(header, frame[40:])
    (3, 7, 9, [b'a', b'bc'])

    :raises TooLarge: see `check_batch`.
    """
    assert records, "an empty batch says nothing"
    check_batch(records)
    payload = msgpack.packb(list(records), use_bin_type=True)
    crc = zlib.crc32(payload)
    head = _BATCH.pack(BATCH_MAGIC, FORMAT_VERSION, 0, epoch, first_index, len(records), len(payload), crc)
    return b"".join((head, _CRC.pack(zlib.crc32(head)), payload))


def read_batch_header(data: bytes | memoryview) -> BatchHeader | None:
    """Return the header with which `data` begins, None if these bytes are not a whole and undamaged one.

    :raises TooNew: it is whole, and of a newer format version.
    """
    fields = _unpack_header(_BATCH, data, BATCH_MAGIC, "batch")
    if fields is None:
        return None
    header = BatchHeader._make(fields[3:])
    is_sane = 0 < header.record_count <= BATCH_RECORDS_MAX and header.frame_bytes <= FRAME_BYTES_MAX
    return header if is_sane else None


def is_payload(header: BatchHeader, payload: bytes | memoryview) -> bool:
    """Say whether `payload` is all of the batch's payload, undamaged."""
    return len(payload) == header.payload_bytes and zlib.crc32(payload) == header.payload_crc


def read_records(header: BatchHeader, payload: bytes | memoryview) -> list[bytes]:
    """Return the batch's records.

    :raises Corrupt: the payload is not what the header tells.
    """
    if not is_payload(header, payload):
        raise Corrupt(f"the batch at index {header.first_index} is damaged: its checksum does not match")
    try:
        records = msgpack.unpackb(
            payload, raw=False, max_bin_len=RECORD_BYTES_MAX, max_array_len=BATCH_RECORDS_MAX
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise Corrupt(f"the batch at index {header.first_index} is no msgpack: {error}") from error
    if (
        not isinstance(records, list)
        or len(records) != header.record_count
        or set(map(type, records)) != {bytes}
    ):
        raise Corrupt(
            f"the batch at index {header.first_index} is not the {header.record_count} records that it tells"
        )
    return records


def encode_snapshot_header(data: bytes, *, epoch: int, next_index: int) -> bytes:
    """Return the bytes that stand before the data of a snapshot."""
    return _pack_snapshot(SnapshotHeader(epoch, next_index, len(data), zlib.crc32(data)))


def _pack_snapshot(header: SnapshotHeader) -> bytes:
    head = _SNAPSHOT.pack(SNAPSHOT_MAGIC, FORMAT_VERSION, 0, *header)
    return head + _CRC.pack(zlib.crc32(head))


def read_snapshot(blob: bytes) -> tuple[SnapshotHeader, bytes] | None:
    """Return the snapshot that `blob` holds, None if it is damaged or not whole.

    :raises TooNew: its header is whole, and of a newer format version.
    """
    fields = _unpack_header(_SNAPSHOT, blob, SNAPSHOT_MAGIC, "snapshot")
    if fields is None:
        return None
    header, data = SnapshotHeader._make(fields[3:]), blob[HEADER_BYTES:]
    is_good = len(data) == header.data_bytes and zlib.crc32(data) == header.data_crc
    return (header, data) if is_good else None


def _unpack_header(
    layout: struct.Struct, data: bytes | memoryview, magic: bytes, what: str
) -> tuple[Any, ...] | None:
    if len(data) < HEADER_BYTES or data[:4] != magic:
        return None
    if zlib.crc32(data[: layout.size]) != _CRC.unpack_from(data, layout.size)[0]:
        return None
    fields = layout.unpack_from(data)
    _check_version(what, fields[1], fields[2])
    return fields


def encode_pointer(header: SnapshotHeader, name: str) -> bytes:
    """Return what points to the chunks of a snapshot, which lie in the directory `name`."""
    return _pack_snapshot(header) + name.encode("ascii")


def read_pointer(blob: bytes) -> tuple[SnapshotHeader, str]:
    """Return the header of the snapshot that is pointed to, and its directory.

    :raises Corrupt, TooNew: damaged; of a newer format version.
    """
    fields = _unpack_header(_SNAPSHOT, blob, SNAPSHOT_MAGIC, "snapshot")
    name = blob[HEADER_BYTES:].decode("ascii", errors="replace")
    if fields is None or not _DIRECTORY.fullmatch(name):
        raise Corrupt("the journal's pointer to its snapshot is damaged")
    return SnapshotHeader._make(fields[3:]), name


def encode_term(term: Term) -> bytes:
    """Return the bytes of a term; see `read_term`."""
    return _pack_map(TERM_MAGIC, term._asdict())


def read_term(blob: bytes) -> Term:
    """Return the term that `blob` holds.

    :raises Corrupt, TooNew: damaged, or not there yet since a restore was not finished; of a newer format version, or of a
        level that this program does not know.
    """
    if unfinished_restore(blob) is not None:
        raise Corrupt("a restore into this journal was not finished: run `stoker journal restore` again")
    fields = _unpack_map(TERM_MAGIC, blob, "epoch")
    try:
        term = Term(int(fields["epoch"]), int(fields["level"]), str(fields["owner"]))
    except (ValueError, TypeError, KeyError) as error:
        raise Corrupt(f"the journal's epoch is damaged: {error!r}") from error
    check_level(term.level)
    return term


def check_level(level: int) -> None:
    """:raises TooNew: this program does not know what that level means."""
    if level > LEVEL_MAX:
        raise TooNew(f"the journal is of level {level}, this program knows {LEVEL_MAX}: upgrade it")


def mark_unfinished(epoch: int, number: int, next_index: int) -> bytes:
    """Return what takes the place of the term while a journal is overwritten: no term, so nobody leads.

    `number`: of the directory where what was there goes; `epoch` and `next_index`: of what was there.

    >>> unfinished_restore(mark_unfinished(7, 1, 300)), unfinished_restore(b"anything else")
    ((7, 1, 300), None)
    """
    return UNFINISHED + b"%d %d %d\n" % (epoch, number, next_index)


def unfinished_restore(blob: bytes) -> tuple[int, int, int] | None:
    """Return the epoch, the number and the index that `mark_unfinished` was given, None: `blob` is no such mark."""
    words = blob.removeprefix(UNFINISHED).split()
    is_mark = blob.startswith(UNFINISHED) and len(words) == 3 and all(word.isdigit() for word in words)
    return (int(words[0]), int(words[1]), int(words[2])) if is_mark else None


def encode_schema(journal: str) -> bytes:
    """Return the bytes that say "this is the journal of that uuid"."""
    return _pack_map(SCHEMA_MAGIC, {"journal": journal})


def read_schema(blob: bytes) -> str:
    """Return the journal's uuid.

    :raises Corrupt, TooNew: these bytes are not ours; of a newer format version.
    """
    return str(_unpack_map(SCHEMA_MAGIC, blob, "schema").get("journal", ""))


def _pack_map(magic: bytes, fields: dict[str, Any]) -> bytes:
    payload = msgpack.packb(fields, use_bin_type=True)
    assert len(payload) < 2**16
    head = struct.pack("<4sHH", magic, FORMAT_VERSION, len(payload))
    return b"".join((head, _CRC.pack(zlib.crc32(payload, zlib.crc32(head))), payload))


def _unpack_map(magic: bytes, blob: bytes, what: str) -> dict[str, Any]:
    if len(blob) < _TERM.size or blob[:4] != magic:
        raise Corrupt(f"the journal's {what} is damaged: these bytes are not of that kind")
    _, version, size, crc = _TERM.unpack_from(blob)
    payload = blob[_TERM.size :]
    if len(payload) != size or zlib.crc32(payload, zlib.crc32(blob[:8])) != crc:
        raise Corrupt(f"the journal's {what} is damaged: its checksum does not match")
    _check_version(what, version, 0)
    try:
        fields = msgpack.unpackb(payload, raw=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise Corrupt(f"the journal's {what} is damaged: {error!r}") from error
    if not isinstance(fields, dict):
        raise Corrupt(f"the journal's {what} is damaged: no map")
    return fields


def _check_version(what: str, version: int, flags: int) -> None:
    if version > FORMAT_VERSION or flags:
        raise TooNew(
            f"a {what} of the journal has format version {version}, flags {flags:#x}; "
            f"this program reads version {FORMAT_VERSION}: upgrade it"
        )
