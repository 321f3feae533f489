"""The journal in a local directory: for one machine, and for a laptop without ZooKeeper.

    DIR/lock                  flock'd by the process that has the journal open; holds its pid and owner
    DIR/epoch                 the term (codec): replaced whole at each `lead`
    DIR/log/<index>.log       segments of batches, see segments
    DIR/snapshots/<index>.snapshot
    DIR/blobs/ab/<sha256>

The rules:

- A batch is one write and one fdatasync; `append` returns after it. If either fails, what was written is cut off again,
  and the journal is done: `close` is all that may follow.
- `lead` reads and checks everything before it changes anything. A torn tail (see segments) is cut off then. A damaged
  snapshot is passed over for the one before it, as long as the records since that one are there: two are kept for that.
- The lock keeps a second process out. The epoch file is looked at before each write too: where the directory was taken
  away and made anew by somebody else, this leader is fenced.

A process may be killed at any point. Everything that was acknowledged is then there at the next `lead`; the batch in
flight is there as a whole, or not at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from stoker.zk.blobs import LocalBlobs
from stoker.zk.codec import (
    HEADER_BYTES,
    LEVEL_MIN,
    OWNER_BYTES_MAX,
    Term,
    encode_batch,
    encode_snapshot_header,
    encode_term,
    read_snapshot,
    read_term,
)
from stoker.zk.disk import PARTIAL_SUFFIX, Disk
from stoker.zk.errors import Corrupt, Fenced, TooLarge, Unavailable
from stoker.zk.journal import SNAPSHOT_BYTES_MAX, Recovered
from stoker.zk.lock import take_lock
from stoker.zk.paths import FileUrl, parse_journal_url
from stoker.zk.segments import (
    SEGMENT_BYTES_MAX,
    Segment,
    check_log,
    list_segments,
    list_snapshots,
    read_log,
    segment_name,
    snapshot_name,
)

_log = logging.getLogger(__name__)

SNAPSHOTS_KEPT = 2


class LocalJournal:
    """See the module, and `journal.Journal` for what each call promises. `lead` once; then close, and make another."""

    def __init__(self, directory: str, *, owner: str, disk: Disk | None = None) -> None:
        """`owner` says to people who has the journal; nothing is touched before `lead`."""
        assert len(owner.encode()) <= OWNER_BYTES_MAX
        self._directory = os.path.abspath(directory)
        self._owner = owner
        self._disk = disk or Disk()
        self._blobs = LocalBlobs(self._in("blobs"), self._disk)
        self._lock = -1
        self._term: Term | None = None
        self._term_mark: tuple[int, ...] = ()
        self._next_index = 0
        self._segment = -1  # descriptor of the segment that is written to, -1: the next append makes one
        self._segment_bytes = 0
        self._is_over = False

    @classmethod
    def open_url(cls, url: str, *, owner: str) -> Self:
        """Return the journal that `file:DIR` names.

        :raises ValueError: another kind of URL, or none.
        """
        place = parse_journal_url(url)
        if not isinstance(place, FileUrl):
            raise ValueError(f"{url!r} is not a local journal: write file:DIR")
        return cls(place.directory, owner=owner)

    def lead(self, from_index: int = 0) -> Recovered:
        """See Journal.lead."""
        assert self._term is None and not self._is_over, "lead once"
        with self._translated("open the journal"):
            try:
                return self._lead(from_index)
            except BaseException:
                self.close()
                raise

    def check(self) -> None:
        """See Journal.check: a lock on this machine does not run out."""
        self._check_leading()

    @property
    def wants_snapshot(self) -> bool:
        """See Journal.wants_snapshot: a disk is large enough for the user's own rule."""
        return False

    def _lead(self, from_index: int) -> Recovered:
        self._disk.make_directory(self._directory)
        self._lock = take_lock(self._directory, self._owner)
        for folder in ("log", "snapshots", "blobs"):
            self._disk.make_directory(self._in(folder))
        before = self._read_term()
        snapshot_index, snapshot, segments = self._read_state(before.epoch)
        # Only reading until here; from here on all is known to be good.
        self._discard_partial()
        term = Term(before.epoch + 1, before.level, self._owner)
        self._disk.replace_file(self._in("epoch"), encode_term(term))
        self._term, self._term_mark = term, self._read_mark()
        self._open_last_segment(segments, snapshot_index)
        is_resumed = from_index > 0 and snapshot_index <= from_index <= self._next_index
        if is_resumed:
            snapshot_index, snapshot = from_index, None
        return Recovered(
            epoch=term.epoch,
            level=term.level,
            snapshot_index=snapshot_index,
            snapshot=snapshot,
            batches=read_log(segments, from_index=snapshot_index),
            resumed=is_resumed,
        )

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        """See Journal.append."""
        term = self._check_leading()
        assert first_index == self._next_index, f"record {self._next_index} comes next, not {first_index}"
        frame = encode_batch(records, epoch=term.epoch, first_index=first_index)
        with self._translated("append to the journal"):
            self._check_fence()
            try:
                self._write_frame(frame, first_index)
            except OSError:
                self._cut_back()
                raise
        self._segment_bytes += len(frame)
        self._next_index += len(records)

    def write_snapshot(self, index: int, data: bytes) -> None:
        """See Journal.write_snapshot; `index` is at most that of the next record. The snapshot before it is kept too.

        :raises TooLarge, Fenced, Unavailable: the journal stays as it was; after Unavailable it can still be appended to.
        """
        term = self._check_leading()
        assert 0 <= index <= self._next_index
        if len(data) > SNAPSHOT_BYTES_MAX:
            raise TooLarge(f"a snapshot of {len(data)} bytes; at most {SNAPSHOT_BYTES_MAX} are allowed")
        path = self._in("snapshots", snapshot_name(index))
        with self._translated("write a snapshot", is_final=False):
            self._check_fence()
            self._disk.replace_file(
                path, encode_snapshot_header(data, epoch=term.epoch, next_index=index), data
            )
            self._close_segment()  # so that the next snapshot but one can forget what came before this one
            self._forget_old()

    def put_blob(self, data: bytes) -> str:
        """See Journal.put_blob; after Unavailable the journal can still be appended to."""
        self._check_leading()
        with self._translated("store a blob", is_final=False):
            self._check_fence()
            return self._blobs.put(data)

    def get_blob(self, digest: str) -> bytes | None:
        """See Journal.get_blob; may be called without `lead`."""
        with self._translated("read a blob", is_final=False):
            return self._blobs.get(digest)

    def delete_blob(self, digest: str) -> None:
        """See Journal.delete_blob."""
        self._check_leading()
        with self._translated("delete a blob", is_final=False):
            self._check_fence()
            self._blobs.delete(digest)

    def blob_digests(self) -> list[str]:
        """See Journal.blob_digests."""
        with self._translated("list the blobs", is_final=False):
            return self._blobs.digests()

    def audit(self) -> str:
        """See Journal.audit: who deletes in our directory takes the epoch file as well, and we are fenced."""
        return ""

    def close(self) -> None:
        """See Journal.close."""
        self._is_over = True
        for descriptor in (self._segment, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._segment = self._lock = -1

    # Taking over

    def _read_term(self) -> Term:
        try:
            with open(self._in("epoch"), "rb") as file:
                return read_term(file.read())
        except FileNotFoundError:
            if list_segments(self._in("log")) or self._list_snapshots():
                raise Corrupt(
                    f"{self._in('epoch')} is missing, but there are records: the epoch is unknown"
                ) from None
            return Term(0, LEVEL_MIN, "")

    def _read_state(self, epoch: int) -> tuple[int, bytes | None, list[Segment]]:
        index, snapshot = self._read_newest_snapshot(epoch)
        segments = check_log(self._in("log"), from_index=index, epoch=epoch)
        self._next_index = max(index, segments[-1].stop_index if segments else index)
        return index, snapshot, segments

    def _read_newest_snapshot(self, epoch: int) -> tuple[int, bytes | None]:
        listed = self._list_snapshots()
        for index, path in reversed(listed):
            with open(path, "rb") as file:
                found = read_snapshot(file.read(SNAPSHOT_BYTES_MAX + HEADER_BYTES + 1))
            if found is not None and found[0].next_index == index and found[0].epoch <= epoch:
                return index, found[1]
            _log.error("%s is damaged: looking for the snapshot before it", path)
        if listed and min(list_segments(self._in("log")), default=(-1, ""))[0] != 0:
            raise Corrupt(f"no snapshot in {self._in('snapshots')} is good; the newest is {listed[-1][1]}")
        return 0, None  # all records are there still

    def _list_snapshots(self) -> list[tuple[int, str]]:
        return list_snapshots(self._in("snapshots"))

    def _discard_partial(self) -> None:
        for folder in (self._directory, self._in("snapshots")):
            for name in os.listdir(folder):
                if name.endswith(PARTIAL_SUFFIX):
                    self._disk.unlink(os.path.join(folder, name))
        self._blobs.discard_partial()

    def _open_last_segment(self, segments: list[Segment], snapshot_index: int) -> None:
        self._disk.sync_directory(self._in("log"))  # its writer may have been killed before it did
        if not segments:
            return
        last = segments[-1]
        descriptor = os.open(last.path, os.O_WRONLY | os.O_CLOEXEC)
        self._segment, self._segment_bytes = descriptor, last.good_bytes
        if last.torn_bytes:
            _log.warning("cut a batch that was never finished off %s: %d bytes", last.path, last.torn_bytes)
            self._disk.truncate(descriptor, last.good_bytes)
        # Also a whole batch may still be in the page cache only, if its writer was killed before the sync.
        self._disk.sync(descriptor)
        if last.stop_index <= snapshot_index:
            self._close_segment()  # all its records are in the snapshot, so what comes next begins another

    # Writing

    def _write_frame(self, frame: bytes, first_index: int) -> None:
        if self._segment_bytes + len(frame) > SEGMENT_BYTES_MAX:
            self._close_segment()
        if self._segment < 0:
            self._segment = self._disk.create(self._in("log", segment_name(first_index)))
            self._segment_bytes = 0
            self._disk.sync_directory(self._in("log"))
        self._disk.write(self._segment, frame, self._segment_bytes)
        self._disk.sync(self._segment)

    def _cut_back(self) -> None:
        """Take back what a failed append may have written, so that a restart is clean; it may fail as well."""
        if self._segment < 0:
            return
        try:
            self._disk.truncate(self._segment, self._segment_bytes)
            self._disk.sync(self._segment)
        except OSError as error:
            _log.warning("cannot cut back the journal after a failed append: %s", error)

    def _close_segment(self) -> None:
        if self._segment >= 0:
            os.close(self._segment)
        self._segment, self._segment_bytes = -1, 0

    def _forget_old(self) -> None:
        """Drop all but the newest snapshots, and the segments below the oldest that is kept."""
        listed = self._list_snapshots()
        for _, path in listed[:-SNAPSHOTS_KEPT]:
            self._disk.unlink(path)
        if len(listed) < SNAPSHOTS_KEPT:
            return
        oldest_index = listed[-SNAPSHOTS_KEPT][0]
        segments = list_segments(self._in("log"))
        for (_, path), (next_index, _) in zip(segments, segments[1:], strict=False):
            if next_index <= oldest_index:
                self._disk.unlink(path)

    def _check_leading(self) -> Term:
        assert self._term is not None, "lead first"
        if self._is_over:  # a failed append, fenced or closed: blobs may be on their way in other threads
            raise Unavailable(f"the journal in {self._directory} is given up")
        return self._term

    def _check_fence(self) -> None:
        if self._read_mark() != self._term_mark:
            self._is_over = True
            raise Fenced(
                f"{self._in('epoch')} is not the one that this leader wrote: somebody else took the journal"
            )

    def _read_mark(self) -> tuple[int, ...]:
        try:
            status = os.stat(self._in("epoch"))
        except FileNotFoundError:
            return ()
        return status.st_dev, status.st_ino, status.st_mtime_ns

    @contextmanager
    def _translated(self, what: str, *, is_final: bool = True) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._is_over |= is_final
            reason = error.strerror or str(error)
            raise Unavailable(f"cannot {what} in {self._directory}: {reason}") from error

    def _in(self, *names: str) -> str:
        return os.path.join(self._directory, *names)
