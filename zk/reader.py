"""Reads a journal in ZooKeeper: its snapshot, and the batches after it, each checked. For leaders and followers.

A batch lies at the index of its first record, so whoever has read all records below an index knows the name of the next
batch. Where that is gone, the log was cut, and the snapshot that the pointer names holds what was there. The leader
writes the snapshot, then the pointer, and cuts then; a server shows that in this order. So what is looked at first is
the log, then the pointer. The snapshot may so be newer than all that was listed, and is followed by nothing then.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from kazoo.exceptions import NoNodeError

from stoker.zk.codec import (
    HEADER_BYTES,
    SnapshotHeader,
    read_batch_header,
    read_pointer,
    read_records,
    read_term,
)
from stoker.zk.errors import Corrupt, Unavailable
from stoker.zk.home import Batch, Snapshot
from stoker.zk.layout import CHUNK_BYTES, chunk_count, read_index
from stoker.zk.session import AnswerLost, Session, getting

BATCHES_AHEAD_MAX = 32  # requests on their way at once; of at most 391 KiB each
CHUNKS_AHEAD_MAX = 8
CUTS_MAX = 100  # the log can be cut while it is read, but not for ever


class _Gone(Exception):
    """A node that was there is not any more: look again."""


class Reader:
    """See the module. `newest_index`: of the record after the newest that was heard of.

    `batch_bytes` gets the size of each batch that is read, by first index, and loses those that are gone.
    """

    def __init__(self, session: Session, batch_bytes: dict[int, int]) -> None:
        self._session = session
        self._layout = session.layout
        self._batch_bytes = batch_bytes
        self.newest_index = 0
        self._chain = (0, 0)  # the index after the batch that was read last, and its epoch

    def read_from(self, index: int) -> Iterator[Snapshot | Batch]:
        """Yield what there is from record `index` on, and end: a Snapshot first, and again, where records are gone.

        Who asks for record 0 has no state yet, and always gets the newest snapshot.

        :raises Corrupt, TooNew: see `Home.follow`; also where the journal ends before `index`.
        :raises Unavailable: the session ended, or the log is cut faster than it can be read.
        """
        for _ in range(CUTS_MAX):
            listed = self.list_batches()
            pointed = self.read_pointer()
            try:
                is_there = index > 0 and bool(listed) and listed[0] <= index
                if pointed is not None and index < pointed[0].next_index and not is_there:
                    snapshot = self._read_snapshot(*pointed)
                    index = snapshot.next_index
                    self.newest_index = max(self.newest_index, index)
                    yield snapshot
                for batch in self._read_listed(listed, index, pointed[0].next_index if pointed else 0):
                    index = batch.first_index + len(batch.records)
                    yield batch
                return
            except _Gone:
                continue  # cut while we read
        raise Unavailable(f"{self._layout.log} is cut faster than it can be read")

    def read_next(self, index: int) -> Batch | None:
        """Return the batch at `index`, None if there is none (yet, or any more). :raises: as `read_from`."""
        try:
            data, _ = self._session.ask(getting(self._layout.batch(index)))
        except NoNodeError:
            return None
        return self._decoded(index, data)

    @property
    def newest_epoch(self) -> int:
        """Epoch of the batch that was read last."""
        return self._chain[1]

    def list_batches(self) -> list[int]:
        """Return the indexes of all batches, ascending. :raises Corrupt: what is there is no batch."""
        names = self._session.names_in(self._layout.log)
        found = [read_index(name) for name in names]
        if None in found:
            raise Corrupt(f"{self._layout.log} holds {names[found.index(None)]!r}, which is no batch")
        indexes = sorted(index for index in found if index is not None)
        for gone in set(self._batch_bytes).difference(indexes):
            self._batch_bytes.pop(gone, None)
        if indexes:
            self.newest_index = max(self.newest_index, indexes[-1] + 1)
        return indexes

    def read_pointer(self) -> tuple[SnapshotHeader, str] | None:
        """Return the newest snapshot's header and directory. :raises Corrupt, TooNew: ..."""
        try:
            data, _ = self._session.ask(getting(self._layout.pointer))
        except NoNodeError as error:
            raise Corrupt(f"{self._layout.pointer} was deleted: the journal is not whole") from error
        return read_pointer(data) if data else None

    def _read_listed(self, listed: Sequence[int], index: int, snapshot_index: int) -> Iterator[Batch]:
        """Yield the batches of `listed` from record `index` on."""
        if not listed:
            if index > snapshot_index:
                raise Corrupt(_ends_before(snapshot_index, index))
            return
        if listed[0] > index:
            self._check_term()
            raise Corrupt(
                f"{self._layout.log} begins with record {listed[0]}, but record {index} is needed: a gap"
            )
        start = max(place for place, first_index in enumerate(listed) if first_index <= index)
        needed = listed[start:]
        paths = [self._layout.batch(first_index) for first_index in needed]
        for first_index, path, data in zip(
            needed, paths, self._read_ahead(paths, BATCHES_AHEAD_MAX), strict=True
        ):
            batch = self._decoded(first_index, data)
            stop_index = first_index + len(batch.records)
            if first_index > index:
                raise Corrupt(f"record {index} is missing: {path} comes after a gap")
            if first_index < index and first_index != needed[0]:
                raise Corrupt(f"{path} holds records that were there before")
            if stop_index < index:
                if index > snapshot_index:
                    raise Corrupt(_ends_before(stop_index, index))
                continue  # the snapshot, which was written after the list was read, has more
            if stop_index > index:
                yield batch._replace(first_index=index, records=batch.records[index - first_index :])
            index = stop_index

    def _check_term(self) -> None:
        """Look for what explains that a record is missing. :raises Corrupt, TooNew: a restore was not finished, for one."""
        try:
            data, _ = self._session.ask(getting(self._layout.epoch))
        except NoNodeError:
            return
        read_term(data)

    def _decoded(self, first_index: int, data: bytes) -> Batch:
        path = self._layout.batch(first_index)
        header = read_batch_header(data)
        if header is None:
            raise Corrupt(f"{path} is damaged: no batch")
        records = read_records(header, memoryview(data)[HEADER_BYTES:])
        if header.first_index != first_index:
            raise Corrupt(f"{path} holds the batch of record {header.first_index}")
        before_index, before_epoch = self._chain
        if first_index == before_index and header.epoch < before_epoch:
            raise Corrupt(f"{path} is of epoch {header.epoch}, after one of epoch {before_epoch}")
        self._chain = (header.stop_index, header.epoch)
        self._batch_bytes[first_index] = len(data)
        self.newest_index = max(self.newest_index, header.stop_index)
        return Batch(first_index, header.epoch, records)

    def _read_snapshot(self, header: SnapshotHeader, name: str) -> Snapshot:
        paths = [self._layout.snapshot_chunk(name, n) for n in range(chunk_count(header.data_bytes))]
        pieces, crc = [], 0
        try:
            for piece in self._read_ahead(paths, CHUNKS_AHEAD_MAX):
                pieces.append(piece)
                crc = zlib.crc32(piece, crc)  # of all at once it would hold up a hub
        except _Gone:
            if self.read_pointer() != (header, name):
                raise
            raise Corrupt(
                f"{self._layout.snapshot(name)} is not whole, but it is the newest snapshot"
            ) from None
        data = b"".join(pieces)
        if len(data) != header.data_bytes or crc != header.data_crc:
            raise Corrupt(f"{self._layout.snapshot(name)} is damaged: its checksum does not match")
        return Snapshot(header.next_index, data)

    def _read_ahead(self, paths: Sequence[str], ahead_max: int) -> Iterator[bytes]:
        """Yield the data of each node, with several requests on their way. :raises _Gone: one is not there."""

        begun: deque[tuple[str, tuple[Any, int]]] = deque()
        rest = iter(paths)
        while True:
            while len(begun) < ahead_max and (path := next(rest, None)) is not None:
                begun.append((path, self._session.begin(getting(path))))
            if not begun:
                return
            path, pending = begun.popleft()
            try:
                try:
                    data, _ = self._session.finish(pending)
                except AnswerLost:
                    self._session.wait_connected()
                    data, _ = self._session.ask(getting(path))
            except NoNodeError as error:
                raise _Gone(path) from error
            yield data


def _ends_before(end: int, index: int) -> str:
    return f"the journal ends at record {end}, but records up to {index} have been there: it is not the same journal"


assert CHUNK_BYTES * CHUNKS_AHEAD_MAX <= 4 * 1024 * 1024
