"""Restoring a journal in ZooKeeper; see restore, and layout for what lies where.

Every write checks the version that the term's znode had when the place was looked at: whoever leads meanwhile changes it,
and nothing more is written. The commit is one multi, of the term and the pointer to the snapshot. What an interrupted
restore leaves before it is garbage that the next leader takes away.
"""

from __future__ import annotations

import contextlib
import time
import uuid
import zlib
from collections.abc import Sequence

from kazoo.exceptions import BadVersionError, NodeExistsError, NoNodeError

from stoker.zk.codec import (
    BatchHeader,
    SnapshotHeader,
    Term,
    encode_pointer,
    encode_schema,
    encode_term,
    mark_unfinished,
    read_batch_header,
    read_pointer,
    read_term,
    unfinished_restore,
)
from stoker.zk.errors import Corrupt, Fenced, Incomplete, Locked, TooLarge, TooNew, Unavailable
from stoker.zk.home import Snapshot
from stoker.zk.journal import SNAPSHOT_BYTES_MAX
from stoker.zk.layout import INDEX_DIGITS, chunks
from stoker.zk.paths import ZkUrl
from stoker.zk.prepare import prepare
from stoker.zk.restore import Needs, NotEmpty, check_needs
from stoker.zk.session import AnswerLost, Operation, Sendings, getting, listing, write_fenced
from stoker.zk.zookeeper_blobs import ZooKeeperBlobs, check_total
from stoker.zk.zookeeper_journal import DELETES_MAX
from stoker.zk.zookeeper_onlooker import open_session, read_members, shown

MEMBERS_WAIT_MS = 15_000  # for schedulers that are on their way out, and for the sessions of dead ones
_LOOK_S = 0.1


class ZooKeeperTarget:
    """See the module, and restore.Target for what each call promises. What an overwritten journal held is deleted."""

    def __init__(
        self,
        place: ZkUrl,
        *,
        owner: str,
        secret: str = "",
        gevent: bool = False,
        members_wait_ms: int = MEMBERS_WAIT_MS,
    ) -> None:
        """Nothing is touched yet. :raises ValueError: the secret is none."""
        self._place = place
        self._mark = uuid.uuid4().hex  # by which a term of ours is told from all others
        self._session = open_session(place, owner=owner, secret=secret, gevent=gevent)
        self._layout = self._session.layout
        self._blobs = ZooKeeperBlobs(self._session)
        self._members_wait_ms = members_wait_ms
        self._epoch = 0  # the newest that was here
        self._next_index = 0  # of what was here
        self._fence = 0  # version of the term's znode

    def check(self, needs: Needs) -> None:
        """See Target.check."""
        check_needs(needs)
        check_total(needs.blobs_bytes)

    def open(self, *, overwrite: bool) -> int:
        """See Target.open. Waits a while for schedulers to go."""
        self._session.start()
        try:
            prepare(self._session)
        except Incomplete:
            if not overwrite:
                raise
            self._wait_alone()
            self._complete()
        self._session.ask(lambda client: client.sync_async(self._layout.root))
        self._wait_alone()
        data, stat = self._session.ask(getting(self._layout.epoch))
        self._fence = stat.version
        if self._look(data, overwrite=overwrite):
            self._clear()
        return self._epoch

    @property
    def next_index(self) -> int:
        """See Target.next_index."""
        return self._next_index

    def put_blob(self, data: bytes) -> None:
        """See Target.put_blob."""
        self._blobs.put(data, self._write)

    def commit(self, snapshot: Snapshot, term: Term) -> None:
        """See Target.commit."""
        if len(snapshot.data) > SNAPSHOT_BYTES_MAX:
            raise TooLarge(
                f"a snapshot of {len(snapshot.data)} bytes; at most {SNAPSHOT_BYTES_MAX} are allowed"
            )
        assert term.epoch > self._epoch
        epoch = term.epoch
        name = f"{snapshot.next_index:0{INDEX_DIGITS}d}-{epoch}-{uuid.uuid4().hex}"
        self._write(("create", (self._layout.snapshot(name), b"")))
        crc = 0
        for number, chunk in enumerate(chunks(snapshot.data)):
            self._write(("create", (self._layout.snapshot_chunk(name, number), chunk)))
            crc = zlib.crc32(chunk, crc)
        encoded = encode_term(term._replace(owner=f"{term.owner} {self._mark}"))
        header = SnapshotHeader(epoch, snapshot.next_index, len(snapshot.data), crc)
        pointer = encode_pointer(header, name)
        self._take(encoded, ("set_data", (self._layout.pointer, pointer)))

    def close(self) -> None:
        """See Target.close."""
        self._session.close()

    # --- parts

    def _wait_alone(self) -> None:
        deadline_s = time.monotonic() + self._members_wait_ms / 1000
        while members := read_members(self._session):
            if time.monotonic() > deadline_s:
                raise Locked(
                    f"schedulers are there at {shown(self._place)}: {', '.join(members)}; stop them first "
                    "(one that was killed is there until its session ends)"
                )
            self._session.check_alive()
            time.sleep(_LOOK_S)

    def _look(self, data: bytes, *, overwrite: bool) -> bool:
        """Return whether something has to be cleared away. :raises NotEmpty: and that must not be."""
        unfinished = unfinished_restore(data)
        if unfinished is not None:
            self._epoch, _, self._next_index = unfinished
            return True
        try:
            self._epoch = read_term(data).epoch
            pointer = self._session.ask(getting(self._layout.pointer))[0]
            pointed = read_pointer(pointer) if pointer else None
            listed = self._children(self._layout.log)
            if not listed and pointed is None:
                return False
            self._next_index = max(pointed[0].next_index if pointed else 0, self._log_end(listed))
            what = "holds a journal"
        except (Corrupt, TooNew) as error:
            what = f"holds what is no good journal ({error})"
        if overwrite:
            return True
        raise NotEmpty(
            f"{shown(self._place)} {what}: restore into an empty place, or say --overwrite (what is there is deleted; "
            "`stoker journal backup` saves it)"
        )

    def _complete(self) -> None:
        """Make what was deleted of the journal again, in one multi with the mark that nobody may lead it."""
        layout = self._layout
        epoch, index, version = 0, 0, None
        if self._exists(layout.epoch):
            data, stat = self._session.ask(getting(layout.epoch))
            version, unfinished = stat.version, unfinished_restore(data)
            with contextlib.suppress(Corrupt, TooNew):  # of what cannot be read the rest may know more
                epoch, _, index = unfinished or (read_term(data).epoch, 0, 0)
        if self._exists(layout.log) and (listed := self._children(layout.log)):
            with contextlib.suppress(Corrupt, TooNew):
                last = self._last_batch(listed)
                epoch, index = max(epoch, last.epoch), max(index, last.stop_index)
        if self._exists(layout.pointer) and (pointer := self._session.ask(getting(layout.pointer))[0]):
            with contextlib.suppress(Corrupt, TooNew):
                newest = read_pointer(pointer)[0]
                epoch, index = max(epoch, newest.epoch), max(index, newest.next_index)
        mark = mark_unfinished(epoch, 0, index)
        missing = [(path, b"") for path in layout.folders if not self._exists(path)]
        if not self._exists(layout.schema):
            missing.append((layout.schema, encode_schema(uuid.uuid4().hex)))
        changed: Operation = (
            ("create", (layout.epoch, mark))
            if version is None
            else ("set_data", (layout.epoch, mark, version))
        )
        try:
            self._session.transact(changed, *(("create", item) for item in missing))
        except (AnswerLost, BadVersionError, NodeExistsError, NoNodeError) as error:
            raise Unavailable(
                f"what was deleted of {layout.root} could not be made again: try once more ({error!r})"
            ) from error

    def _exists(self, path: str) -> bool:
        return self._session.ask(lambda client: client.exists_async(path)) is not None

    def _log_end(self, listed: Sequence[str]) -> int:
        return self._last_batch(listed).stop_index if listed else 0

    def _last_batch(self, listed: Sequence[str]) -> BatchHeader:
        path = f"{self._layout.log}/{listed[-1]}"
        header = read_batch_header(self._session.ask(getting(path))[0])
        if header is None:
            raise Corrupt(f"{path} is damaged: no batch")
        return header

    def _clear(self) -> None:
        """Delete the journal that is here; from the first step on nobody leads it."""
        self._take(
            mark_unfinished(self._epoch, 0, self._next_index), ("set_data", (self._layout.pointer, b""))
        )
        self._delete([f"{self._layout.log}/{name}" for name in self._children(self._layout.log)])
        for folder in (self._layout.snapshots, self._layout.blobs):
            for name in self._children(folder):
                path = f"{folder}/{name}"
                self._delete([f"{path}/{child}" for child in self._children(path)] + [path])

    def _take(self, term: bytes, *operations: Operation) -> None:
        """Set the term's znode and do `operations` with it; its version is the fence from then on."""
        is_doubtful = False
        sendings = Sendings(self._session, "the term")
        while True:
            try:
                term_set: Operation = ("set_data", (self._layout.epoch, term, self._fence))
                results = self._session.finish_transaction(
                    self._session.begin_transaction(term_set, *operations)
                )
                self._fence = results[0].version
                return
            except AnswerLost as lost:
                is_doubtful = True
                sendings.await_next(lost)
            except BadVersionError as error:
                data, stat = self._session.ask(getting(self._layout.epoch))
                if is_doubtful and data == term:
                    self._fence = stat.version
                    return  # it was done, only the answer got lost
                raise self._taken() from error

    def _write(self, *operations: Operation) -> None:
        write_fenced(
            self._session, ("check", (self._layout.epoch, self._fence)), operations, taken=self._taken
        )

    def _delete(self, paths: list[str]) -> None:
        for start in range(0, len(paths), DELETES_MAX):
            self._write(*(("delete", (path,)) for path in paths[start : start + DELETES_MAX]))

    def _children(self, path: str) -> list[str]:
        return sorted(self._session.ask(listing(path)))

    def _taken(self) -> Fenced:
        return Fenced(
            f"a scheduler has taken the journal at {shown(self._place)} meanwhile: nothing was restored"
        )
