"""The home of a journal in ZooKeeper: one session, one candidate, one follower.

`follow` reads what there is, and then waits for each batch by a watch on the znode that it will have: nothing is listed
while it keeps up. One who falls behind lists the log and reads many batches at once: all that there was when it was
listed, so that also a follower that is never quite level with a busy leader hears that it has read all there is.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from kazoo.exceptions import NoNodeError

from stoker.zk.codec import OWNER_BYTES_MAX
from stoker.zk.core import leadership as core
from stoker.zk.home import Batch, Snapshot
from stoker.zk.journal import Journal
from stoker.zk.paths import ZkUrl, with_secret
from stoker.zk.prepare import prepare
from stoker.zk.reader import Reader
from stoker.zk.session import Session, deleting
from stoker.zk.zookeeper_blobs import ZooKeeperBlobs
from stoker.zk.zookeeper_journal import ZooKeeperJournal

MEMBER_BYTES_MAX = 1024
SILENT_S_MAX = 60  # then it is asked without a watch's word: who may not read any more is told nothing
BEHIND_MAX = 16  # batches read one by one before the log is listed


class ZooKeeperHome:
    """See the module, and `home.Home` for what each call promises."""

    def __init__(
        self,
        place: ZkUrl,
        *,
        member: str,
        owner: str,
        session_timeout_ms: int,
        gevent: bool,
        secret: str = "",
        process: str = "",
        make_session: Callable[..., Session] = Session,
    ) -> None:
        """:raises ValueError: the secret is none, or the timeout out of its range."""
        if not core.SESSION_TIMEOUT_MS_MIN <= session_timeout_ms <= core.SESSION_TIMEOUT_MS_MAX:
            raise ValueError(
                f"a session timeout of {session_timeout_ms} ms: "
                f"{core.SESSION_TIMEOUT_MS_MIN} to {core.SESSION_TIMEOUT_MS_MAX} are allowed"
            )
        assert len(member.encode()) <= MEMBER_BYTES_MAX
        self._process = process
        self.candidate = process + uuid.uuid4().hex  # what names our election node
        owner = f"{owner} {self.candidate}"
        assert len(owner.encode()) <= OWNER_BYTES_MAX
        self._session = make_session(
            with_secret(place, secret),
            member=member,
            candidate=self.candidate,
            owner=owner,
            session_timeout_ms=session_timeout_ms,
            gevent=gevent,
        )
        batch_bytes: dict[int, int] = {}
        self._reader = Reader(self._session, batch_bytes)
        self._journal = ZooKeeperJournal(self._session, batch_bytes)
        self._blobs = ZooKeeperBlobs(self._session)
        self._wake = self._session.handler.event_object()
        self._is_stopped = False
        self._silent_s = min(session_timeout_ms / 1000, SILENT_S_MAX)

    def start(self) -> None:
        self._session.start()
        try:
            prepare(self._session)
            self._forget_earlier()
        except BaseException:
            self.close()
            raise
        self._session.post(core.Prepared())

    def _forget_earlier(self) -> None:
        """Delete the election nodes of homes that this process closed while ZooKeeper did not answer.

        They lead no more, and all others would wait for their sessions to run out.
        """
        if not self._process:
            return
        election = self._session.layout.election
        for node in self._session.names_in(election):
            if node.startswith(f"n_{self._process}"):
                with contextlib.suppress(NoNodeError):
                    self._session.ask(deleting(f"{election}/{node}"))

    def join(self) -> None:
        self._session.check_alive()
        self._session.post(core.Joined())

    def wait_turn(self, timeout_ms: int | None = None) -> bool:
        return self._session.wait_turn(timeout_ms)

    def follow(self, from_index: int) -> Iterator[Snapshot | Batch | None]:
        self._session.on_end(self._wake.set)
        index = from_index
        while not self._is_stopped:
            for step in self._reader.read_from(index):
                index = (
                    step.next_index if isinstance(step, Snapshot) else step.first_index + len(step.records)
                )
                yield step
                if self._is_stopped:
                    return
            yield None
            for batch in self._follow_closely(index):
                if batch is not None:
                    index = batch.first_index + len(batch.records)
                yield batch

    def _follow_closely(self, index: int) -> Iterator[Batch | None]:
        """Yield batch after batch as they come; end when a batch is gone, or when we are behind."""
        behind = 0
        while not self._is_stopped and behind < BEHIND_MAX:
            batch = self._reader.read_next(index)
            if batch is not None:
                behind += 1
                index += len(batch.records)
                yield batch
                continue
            # Only now: a watch on a node that is there already would stay until the log is cut.
            if self._await_node(index) is not None:
                continue
            if self._is_cut(index):
                return
            behind = 0
            yield None
            self._wait_changed()

    def _await_node(self, index: int) -> Any:
        """Return the stat of the batch's node, or None, and then `_wake` is set once it is made."""
        path = self._session.layout.batch(index)
        self._wake.clear()
        if self._is_stopped:
            self._wake.set()
        return self._session.ask(lambda client: client.exists_async(path, self._on_node))

    def _on_node(self, _: object) -> None:  # one watcher for all: kazoo keeps each that it is given only once
        self._wake.set()

    def _is_cut(self, index: int) -> bool:
        """Say whether the batch is not there because it is gone already. To be asked after it was not found."""
        pointed = self._reader.read_pointer()
        return pointed is not None and pointed[0].next_index > index

    def _wait_changed(self) -> None:
        """Wait for the watch, the end of the session or of the following; or until it is time to ask without a word."""
        self._wake.wait(self._silent_s)
        self._session.check_alive()

    def stop_following(self) -> None:
        self._is_stopped = True
        self._wake.set()

    def newest_index(self) -> int:
        return self._reader.newest_index

    def journal(self) -> Journal:
        return self._journal

    def members(self) -> tuple[str, ...]:
        return self._session.members

    def get_blob(self, digest: str) -> bytes | None:
        return self._blobs.get(digest)

    def close(self) -> None:
        self.stop_following()
        self._journal.close()
        self._session.close()
