"""The journal in ZooKeeper, as its leader has it: see `layout` for what lies where, `reader` for how it is read.

The rules:

- Every write is a multi that checks the fence first: the version that the term's znode got when this leader took the
  epoch. So nothing that a deposed leader sends has any effect, however late it comes.
- `lead` reads and checks everything before it takes the epoch, and what was written meanwhile after it, in the same
  session: a journal that is damaged or too new stays as it is.
- An answer that got lost is settled by sending the same multi again in the same session (`core.append`). Where that
  cannot be, because the session ended, the outcome is unknown, and the leadership over.
- A snapshot's chunks come first, then the pointer to them, then the log is cut, in multis, each fenced. Whoever is
  interrupted leaves garbage that nobody reads; the next snapshot takes it away.

`append` may run beside a call for a blob or a snapshot: they do not touch what it touches.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence

from kazoo.exceptions import BadVersionError, NodeExistsError, NoNodeError

from stoker.zk.codec import SnapshotHeader, encode_batch, encode_pointer
from stoker.zk.core import append as window
from stoker.zk.core.leadership import Ending, Lead
from stoker.zk.errors import Corrupt, Fenced, JournalError, TooLarge, Unavailable
from stoker.zk.home import Batch, Snapshot
from stoker.zk.journal import SNAPSHOT_BYTES_MAX, Recovered
from stoker.zk.layout import CHUNK_BYTES, INDEX_DIGITS, chunk_count, chunks, read_index
from stoker.zk.reader import Reader
from stoker.zk.session import (
    LOOK_S,
    AnswerLost,
    Operation,
    Session,
    getting,
    listing,
    write_fenced,
)
from stoker.zk.zookeeper_blobs import ZooKeeperBlobs

_log = logging.getLogger(__name__)

LOG_BYTES_MAX = 64 * 1024 * 1024  # above one of these a snapshot is wanted
LOG_BATCHES_MAX = 2_000
LOG_FULL_FACTOR = 4  # at this many times them, an append waits until a snapshot has cut the log
LOG_WAIT_MS = 60_000  # but no longer than this
DELETES_MAX = 500  # in one multi
_UNSEEN_BATCH_BYTES = LOG_BYTES_MAX // LOG_BATCHES_MAX  # what a batch counts whose size we never saw
assert CHUNK_BYTES <= 512 * 1024, "a request must be well below 1 MiB"


class ZooKeeperJournal:
    """See the module, and `journal.Journal` for what each call promises. One a session."""

    def __init__(self, session: Session, batch_bytes: dict[int, int]) -> None:
        """`batch_bytes` is what the session's readers keep of the sizes of batches."""
        self._session = session
        self._layout = session.layout
        self._reader = Reader(session, batch_bytes)
        self._batch_bytes = batch_bytes
        self._blobs = ZooKeeperBlobs(session)
        self._lead: Lead | None = None
        self._window = window.AppendWindow(0)
        self._log = _Log()
        self._changed = session.handler.event_object()  # the log was cut, or this leadership is over
        self._snapshot_number = 0
        self._missing = ""  # what somebody deleted, until a snapshot holds all records below `_damaged_index`
        self._damaged_index = 0
        self._over: JournalError | None = None

    def lead(self, from_index: int = 0) -> Recovered:
        """See Journal.lead; it must be our turn."""
        assert self._lead is None and self._over is None, "lead once"
        found = self._read(from_index)
        self._lead = self._session.claim()
        for step in self._reader.read_from(found.next_index):
            found.add(step)
        if self._reader.newest_epoch >= self._lead.term.epoch:
            raise Corrupt(f"{self._layout.log} holds a batch of a later epoch than {self._layout.epoch}")
        for first_index in self._reader.list_batches():
            self._log.add(first_index, self._batch_bytes.get(first_index, _UNSEEN_BATCH_BYTES))
        self._window = window.AppendWindow(found.next_index)
        return Recovered(
            epoch=self._lead.term.epoch,
            level=self._lead.term.level,
            snapshot_index=found.index,
            snapshot=found.snapshot,
            batches=found.batches(),
            resumed=from_index > 0 and found.is_resumed and found.index == from_index,
        )

    def check(self) -> None:
        """See Journal.check."""
        if self._over is not None:
            raise type(self._over)(*self._over.args)
        assert self._lead is not None, "lead first"
        self._session.check_time()

    @property
    def wants_snapshot(self) -> bool:
        """See Journal.wants_snapshot."""
        return self._log.count > LOG_BATCHES_MAX or self._log.bytes > LOG_BYTES_MAX

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        """See Journal.append. Waits, LOG_WAIT_MS at most, while the log is full, for a snapshot to cut it.

        So a snapshot must come from another greenlet or thread; who has none would wait in vain, and is told then.

        :raises Unavailable: also where the log was not cut in that time.
        """
        self.check()
        assert self._lead is not None
        data = encode_batch(records, epoch=self._lead.term.epoch, first_index=first_index)
        self._await_room(len(data))
        commands = self._window.observe(window.Submitted(first_index, len(records), data))
        while True:
            (command,) = commands
            if isinstance(command, window.Acknowledge):
                self._log.add(first_index, len(data))
                return
            if isinstance(command, window.GiveUp):
                raise self._end(self._give_up(command))
            commands = self._window.observe(self._perform(command))

    def write_snapshot(self, index: int, data: bytes) -> None:
        """See Journal.write_snapshot; `index` is at most that of the next record.

        :raises TooLarge: above SNAPSHOT_BYTES_MAX, and nothing was sent.
        """
        self.check()
        assert self._lead is not None
        assert 0 <= index <= self._window.next_index
        if len(data) > SNAPSHOT_BYTES_MAX:
            raise TooLarge(f"a snapshot of {len(data)} bytes; at most {SNAPSHOT_BYTES_MAX} are allowed")
        self._snapshot_number += 1
        epoch = self._lead.term.epoch
        name = f"{index:0{INDEX_DIGITS}d}-{epoch}-{self._snapshot_number}"
        self._write(("create", (self._layout.snapshot(name), b"")))
        crc = 0  # chunk by chunk: of all at once it would hold up a hub
        for number, chunk in enumerate(chunks(data)):
            self._write(("create", (self._layout.snapshot_chunk(name, number), chunk)))
            crc = zlib.crc32(chunk, crc)
        pointer = encode_pointer(SnapshotHeader(epoch, index, len(data), crc), name)
        self._write(("set_data", (self._layout.pointer, pointer)))
        self._cut(index, name)
        if index >= self._damaged_index:
            self._missing = ""

    def put_blob(self, data: bytes) -> str:
        """See Journal.put_blob."""
        self.check()
        return self._blobs.put(data, self._write)

    def get_blob(self, digest: str) -> bytes | None:
        """See Journal.get_blob; may be called without `lead`."""
        return self._blobs.get(digest)

    def delete_blob(self, digest: str) -> None:
        """See Journal.delete_blob."""
        self.check()
        self._blobs.delete(digest, self._write)

    def blob_digests(self) -> list[str]:
        """See Journal.blob_digests."""
        return self._blobs.digests()

    def audit(self) -> str:
        """See Journal.audit."""
        self.check()
        known = self._log.indexes()  # before the names are asked for: what is appended meanwhile is no loss
        gone = known.difference(map(read_index, self._session.names_in(self._layout.log)))
        if gone:
            self._log.remove(gone)  # so that nobody looks for them again
            self._miss(
                f"{len(gone)} batches, from record {min(gone)} on, were deleted from {self._layout.log}"
            )
        pointed = self._reader.read_pointer()
        if pointed is not None and not self._is_whole(*pointed):
            self._miss(f"the newest snapshot, {self._layout.snapshot(pointed[1])}, was deleted")
        return self._missing

    def _miss(self, what: str) -> None:
        self._damaged_index, self._missing = self._window.next_index, f"{what} by somebody else"

    def _is_whole(self, header: SnapshotHeader, name: str) -> bool:
        try:
            found = self._session.ask(listing(self._layout.snapshot(name)))
        except NoNodeError:
            return False
        return len(found) == chunk_count(header.data_bytes)

    def close(self) -> None:
        """Nothing may follow. The session is the home's, which closes it."""
        self._over = self._over or Unavailable("the journal is closed")
        self._changed.set()

    # Taking over

    def _read(self, from_index: int) -> _Found:
        try:
            return self._read_checked(from_index)
        except Corrupt:
            if from_index == 0:
                raise
            # The caller's state may be what is wrong (of a journal that was restored since): all from the start.
            return self._read_checked(0)

    def _read_checked(self, from_index: int) -> _Found:
        found = _Found(from_index)
        for step in self._reader.read_from(from_index):
            found.add(step)
        return found

    # Writing

    def _perform(self, command: window.Send | window.AwaitConnection | window.ReadBack) -> window.AppendEvent:
        try:
            match command:
                case window.Send(first_index, data):
                    return self._send(first_index, data)
                case window.AwaitConnection():
                    self._session.wait_connected()
                    return window.Reconnected()
                case window.ReadBack(first_index):
                    return self._read_back(first_index)
        except AnswerLost as lost:
            return window.AnswerLost(lost.was_sent)
        except Fenced as error:
            return window.SessionOver(Ending.FENCED, str(error))
        except JournalError as error:
            return window.SessionOver(Ending.UNAVAILABLE, str(error))

    def _send(self, first_index: int, data: bytes) -> window.AppendEvent:
        begun = self._session.begin_transaction(
            self._fence(), ("create", (self._layout.batch(first_index), data))
        )
        try:
            self._session.finish_transaction(begun)
        except NodeExistsError:
            return window.NodeExists()
        except BadVersionError:
            return window.BadVersion()
        except NoNodeError:
            return window.NoNode()
        return window.Created()

    def _read_back(self, first_index: int) -> window.AppendEvent:
        pending = self._session.begin(getting(self._layout.batch(first_index)))
        try:
            data, _ = self._session.finish(pending)
        except NoNodeError:
            return window.NodeRead(None)
        return window.NodeRead(data)

    def _write(self, *operations: Operation) -> None:
        """See write_fenced."""
        try:
            write_fenced(
                self._session,
                self._fence(),
                operations,
                taken=lambda: Fenced("another leader has taken the epoch"),
            )
        except (Fenced, Unavailable) as error:
            raise self._end(error) from error

    def _fence(self) -> Operation:
        assert self._lead is not None
        return "check", (self._layout.epoch, self._lead.fence)

    def _await_room(self, size: int) -> None:
        """Wait until the log may grow by one batch. :raises Fenced, Unavailable: ..."""
        if self._has_room(size):
            return
        _log.warning("the log in %s is full: waiting for a snapshot", self._layout.log)
        deadline_ms = self._session.now_ms() + LOG_WAIT_MS
        while True:
            self._changed.clear()
            self.check()
            if self._has_room(size):
                return
            if self._session.now_ms() >= deadline_ms:
                raise self._end(
                    Unavailable(
                        f"the log in {self._layout.log} holds {self._log.count} batches, {self._log.bytes} bytes, and "
                        f"no snapshot was written for {LOG_WAIT_MS} ms: {LOG_FULL_FACTOR} times {LOG_BATCHES_MAX} "
                        f"batches or {LOG_BYTES_MAX} bytes are the most"
                    )
                )
            self._changed.wait(LOOK_S)

    def _has_room(self, size: int) -> bool:
        return (
            self._log.count < LOG_BATCHES_MAX * LOG_FULL_FACTOR
            and self._log.bytes + size <= LOG_BYTES_MAX * LOG_FULL_FACTOR
        )

    def _give_up(self, command: window.GiveUp) -> JournalError:
        if command.ending is Ending.FENCED and not command.is_doubtful:
            return Fenced(command.reason)
        doubt = "; whether the last batch was written is not known" if command.is_doubtful else ""
        return Unavailable(command.reason + doubt)

    def _end(self, error: JournalError) -> JournalError:
        self._over = self._over or error
        self._changed.set()
        return error

    # Forgetting

    def _cut(self, index: int, name: str) -> None:
        """Delete the batches that lie wholly below `index`, and all snapshots but the one called `name`."""
        below = self._log.below(index, end_index=self._window.next_index)
        for start in range(0, len(below), DELETES_MAX):
            some = below[start : start + DELETES_MAX]
            self._delete([self._layout.batch(first_index) for first_index in some])
            self._log.remove(some)  # at once: whoever goes on after an interruption must not look for them
            self._changed.set()
        for other in self._session.names_in(self._layout.snapshots):
            if other != name:
                self._delete_snapshot(other)

    def _delete_snapshot(self, name: str) -> None:
        path = self._layout.snapshot(name)
        try:
            children = self._session.ask(listing(path))
        except NoNodeError:
            return
        self._delete([f"{path}/{child}" for child in sorted(children)] + [path])

    def _delete(self, paths: list[str]) -> None:
        for start in range(0, len(paths), DELETES_MAX):
            self._write(*(("delete", (path,)) for path in paths[start : start + DELETES_MAX]))


class _Log:
    """The batches that lie in ZooKeeper: how many, how large."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}  # by first index
        self.bytes = 0

    @property
    def count(self) -> int:
        return len(self._sizes)

    def indexes(self) -> set[int]:
        return set(self._sizes)

    def add(self, first_index: int, size: int) -> None:
        self._sizes[first_index] = size
        self.bytes += size

    def remove(self, indexes: Iterable[int]) -> None:
        for first_index in indexes:
            self.bytes -= self._sizes.pop(first_index)

    def below(self, index: int, *, end_index: int) -> list[int]:
        """Return the batches with no record from `index` on, ascending; `end_index` is where the newest one ends."""
        listed = sorted(self._sizes)
        stops = [*listed[1:], end_index]
        return [first for first, stop in zip(listed, stops, strict=False) if first < index and stop <= index]


class _Found:
    """What was read so far: a snapshot, or the caller's own state, and the batches from there on."""

    def __init__(self, from_index: int) -> None:
        self.index = from_index
        self.next_index = from_index
        self.snapshot: bytes | None = None
        self.is_resumed = True
        self._batches: list[Batch] = []

    def add(self, step: Snapshot | Batch) -> None:
        if isinstance(step, Snapshot):
            self.index, self.snapshot, self.is_resumed = step.next_index, step.data, False
            self.next_index = step.next_index
            self._batches = []
            return
        self._batches.append(step)
        self.next_index = step.first_index + len(step.records)

    def batches(self) -> Iterator[tuple[int, list[bytes]]]:
        return ((batch.first_index, batch.records) for batch in self._batches)
