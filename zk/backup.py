"""A backup: one file that holds the state of a journal as of one index, and describes itself. Bytes only.

What it holds: a snapshot (none, where the log goes back to the first record), the records after it, and the blobs that
the state points to. All numbers are little endian and unsigned. The file begins with

    [0, 8)     magic "SKBACKUP"
    [8, 10)    u16  format version, 1
    [10, 12)   u16  flags, 0

and goes on with sections, each

    [0, 4)     magic "SKBS"
    [4, 6)     u16  kind
    [6, 8)     u16  flags, 0
    [8, 16)    u64  payload bytes
    [16, 20)   u32  CRC-32 of the payload
    [20, 24)   u32  CRC-32 of [0, 20)
    then       the payload

    kind 1     about: msgpack, a map {"epoch", "level", "owner", "place", "wall_ms"}; once, and first
    kind 2     a snapshot, as in codec. What came before it counts no more
    kind 3     a batch, as in codec
    kind 4     a blob
    kind 5     end: msgpack, a map {"epoch", "next_index", "snapshot_index", "records", "blobs", "sha256", "words"}; once, and
               last. `epoch` is the newest of all that is in here (a leader may have changed meanwhile), `sha256` of all bytes
               before this section; `words` are the writer's own, a map of what people want to know

A file without an end, with anything behind it, or with a bit changed anywhere is no backup: `check` reads it whole.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import msgpack

from stoker.zk.codec import (
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    encode_batch,
    encode_snapshot_header,
    read_batch_header,
    read_records,
    read_snapshot,
)
from stoker.zk.errors import Corrupt, TooNew
from stoker.zk.home import Batch, Snapshot
from stoker.zk.journal import BLOB_BYTES_MAX, SNAPSHOT_BYTES_MAX

FORMAT_VERSION = 1
FILE_MAGIC = b"SKBACKUP"
SECTION_MAGIC = b"SKBS"
ABOUT, SNAPSHOT, BATCH, BLOB, END = range(1, 6)

_FILE = struct.Struct("<8sHH")
_SECTION = struct.Struct("<4sHHQI")
_CRC = struct.Struct("<I")
_SECTION_BYTES = _SECTION.size + _CRC.size
_SNAPSHOT_BYTES_MAX = SNAPSHOT_BYTES_MAX + HEADER_BYTES
_MAP_BYTES_MAX = 64 * 1024
_BYTES_MAX = {
    ABOUT: _MAP_BYTES_MAX,
    SNAPSHOT: _SNAPSHOT_BYTES_MAX,
    BATCH: FRAME_BYTES_MAX,
    BLOB: BLOB_BYTES_MAX,
    END: _MAP_BYTES_MAX,
}


class About(NamedTuple):
    """Of which journal, in which term, and when; `wall_ms` is a label."""

    epoch: int
    level: int
    owner: str
    place: str
    wall_ms: int


class Blob(NamedTuple):
    digest: str
    data: bytes


class End(NamedTuple):
    """What the file holds in all; `snapshot_index` 0 where there is no snapshot."""

    epoch: int
    next_index: int
    snapshot_index: int
    records: int
    blobs: int
    words: Mapping[str, Any]


Part = About | Snapshot | Batch | Blob | End


class BackupWriter:
    """Write a backup through `write`, which takes all it is given: `about`, then the parts, then `end`."""

    def __init__(self, write: Callable[[bytes], object], about: About) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self._epoch = self._newest_epoch = about.epoch
        self._snapshot_index = self._next_index = self._record_count = self._blob_count = 0
        self.written_bytes = 0
        self._put(_FILE.pack(FILE_MAGIC, FORMAT_VERSION, 0))
        self._section(ABOUT, msgpack.packb(about._asdict()))

    def add(self, part: Snapshot | Batch | bytes) -> None:
        """Add a snapshot (which begins again), a batch that follows what is there, or a blob."""
        if isinstance(part, Snapshot):
            header = encode_snapshot_header(part.data, epoch=self._epoch, next_index=part.next_index)
            self._section(SNAPSHOT, header, part.data)
            self._snapshot_index = self._next_index = part.next_index
            self._record_count = 0
        elif isinstance(part, Batch):
            assert part.first_index == self._next_index, (part.first_index, self._next_index)
            self._section(BATCH, encode_batch(part.records, epoch=part.epoch, first_index=part.first_index))
            self._newest_epoch = max(self._newest_epoch, part.epoch)
            self._next_index += len(part.records)
            self._record_count += len(part.records)
        else:
            self._section(BLOB, part)
            self._blob_count += 1

    def end(self, words: Mapping[str, Any]) -> End:
        """Add the end; nothing may follow."""
        end = End(
            epoch=self._newest_epoch,
            next_index=self._next_index,
            snapshot_index=self._snapshot_index,
            records=self._record_count,
            blobs=self._blob_count,
            words=words,
        )
        fields = end._asdict() | {"sha256": self._hash.digest(), "words": dict(words)}
        self._section(END, msgpack.packb(fields))
        return end

    def _section(self, kind: int, *payload: bytes) -> None:
        crc = 0
        for piece in payload:
            crc = zlib.crc32(piece, crc)
        size = sum(map(len, payload))
        assert size <= _BYTES_MAX[kind], (kind, size)
        head = _SECTION.pack(SECTION_MAGIC, kind, 0, size, crc)
        self._put(head + _CRC.pack(zlib.crc32(head)), *payload)

    def _put(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._hash.update(piece)
            self._write(piece)
            self.written_bytes += len(piece)


def read_backup(file: BinaryIO, *, name: str) -> Iterator[Part]:
    """Yield the parts of a backup, from its beginning; a part at a time is held in memory.

    Only what comes after End was yielded is known to be whole: act on nothing before.

    :raises Corrupt, TooNew: no backup, not whole, damaged; of a newer format version. The text names the byte.
    """
    return _Reading(file, name).parts()


def check(file: BinaryIO, *, name: str) -> tuple[About, End]:
    """Read a backup whole and return what it says of itself. :raises Corrupt, TooNew: as `read_backup`."""
    about: About | None = None
    end: End | None = None
    for part in read_backup(file, name=name):
        if isinstance(part, About):
            about = part
        elif isinstance(part, End):
            end = part
    assert about is not None and end is not None
    return about, end


class _Reading:
    """One way through a backup's file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._hash = hashlib.sha256()
        self._offset = 0
        self._epoch = -1  # the journal's; -1 before `about`
        self._batch_epoch = 0
        self._end = End(0, 0, 0, 0, 0, {})  # as it must be, from what came so far

    def parts(self) -> Iterator[Part]:
        magic, version, flags = _FILE.unpack(self._take(_FILE.size))
        if magic != FILE_MAGIC:
            raise Corrupt(f"{self._name} is no backup of a Stoker journal")
        self._check_version(version, flags)
        while True:
            digest = self._hash.digest()
            kind, payload = self._section()
            part = self._part(kind, payload, digest)
            if isinstance(part, End) and self._file.read(1):
                raise self._damaged("something follows the end")
            yield part
            if isinstance(part, End):
                return

    def _section(self) -> tuple[int, bytes]:
        head = self._take(_SECTION_BYTES)
        magic, kind, flags, size, crc = _SECTION.unpack_from(head)
        if (
            magic != SECTION_MAGIC
            or zlib.crc32(head[: _SECTION.size]) != _CRC.unpack_from(head, _SECTION.size)[0]
        ):
            raise self._damaged("no section begins here")
        if flags or kind not in _BYTES_MAX:
            self._check_version(FORMAT_VERSION + 1, flags)
        if size > _BYTES_MAX[kind]:
            raise self._damaged(f"a section of {size} bytes")
        if (kind == ABOUT) != (self._epoch < 0):
            raise self._damaged("the sections are out of order")
        payload = self._take(size)
        if zlib.crc32(payload) != crc:
            raise self._damaged("a checksum does not match")
        return kind, payload

    def _part(self, kind: int, payload: bytes, digest: bytes) -> Part:
        try:
            if kind == ABOUT:
                fields = msgpack.unpackb(payload)
                about = About(**{name: fields[name] for name in About._fields})
                self._epoch = int(about.epoch)
                self._end = self._end._replace(epoch=self._epoch)
                return about
            if kind == SNAPSHOT:
                return self._snapshot(payload)
            if kind == BATCH:
                return self._batch(payload)
            if kind == BLOB:
                self._end = self._end._replace(blobs=self._end.blobs + 1)
                return Blob(hashlib.sha256(payload).hexdigest(), payload)
            return self._check_end(msgpack.unpackb(payload), digest)
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise self._damaged(repr(error)) from error

    def _snapshot(self, payload: bytes) -> Snapshot:
        found = read_snapshot(payload)
        if found is None or found[0].epoch > self._epoch or found[0].next_index < self._end.next_index:
            raise self._damaged("a snapshot that is none, or out of order")
        index = found[0].next_index
        self._end = self._end._replace(next_index=index, snapshot_index=index, records=0)
        return Snapshot(index, found[1])

    def _batch(self, payload: bytes) -> Batch:
        header = read_batch_header(payload)
        if header is None or header.first_index != self._end.next_index:
            raise self._damaged(f"a batch that is none, or not of record {self._end.next_index}")
        if header.epoch < self._batch_epoch:
            raise self._damaged(f"a batch of epoch {header.epoch}, after one of epoch {self._batch_epoch}")
        self._batch_epoch = header.epoch
        records = read_records(header, payload[HEADER_BYTES:])
        count = self._end.records + len(records)
        epoch = max(self._end.epoch, header.epoch)
        self._end = self._end._replace(epoch=epoch, next_index=header.stop_index, records=count)
        return Batch(header.first_index, header.epoch, records)

    def _check_end(self, fields: Mapping[str, Any], digest: bytes) -> End:
        end = End(**{name: fields[name] for name in End._fields})
        if fields["sha256"] != digest:
            raise self._damaged("the digest of the whole file does not match")
        if end._replace(words={}) != self._end or not isinstance(end.words, dict):
            raise self._damaged("it is not what its end tells")
        return end

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise Corrupt(
                f"{self._name} is not a whole backup: it ends after {self._offset + len(data)} bytes, without its end"
            )
        self._hash.update(data)
        self._offset += size
        return data

    def _check_version(self, version: int, flags: int) -> None:
        if version != FORMAT_VERSION or flags:
            raise TooNew(
                f"{self._name} has format version {version} or above, flags {flags:#x}; this program reads version "
                f"{FORMAT_VERSION}: upgrade it"
            )

    def _damaged(self, what: str) -> Corrupt:
        return Corrupt(f"{self._name} is damaged near byte {self._offset}: {what}")
