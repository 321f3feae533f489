"""Looking at a journal in ZooKeeper: a session that makes nothing, joins no election, and writes nothing.

See onlooker, and layout for what lies where.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from kazoo.exceptions import NoNodeError

from stoker.zk.codec import Term, read_schema, read_term
from stoker.zk.core.leadership import SESSION_TIMEOUT_MS
from stoker.zk.errors import Corrupt, Unavailable
from stoker.zk.home import Batch, Snapshot
from stoker.zk.layout import chunk_count
from stoker.zk.onlooker import Header
from stoker.zk.paths import ZkUrl, with_secret
from stoker.zk.reader import Reader
from stoker.zk.session import AnswerLost, Request, Session, getting, listing
from stoker.zk.zookeeper_blobs import ZooKeeperBlobs

LOOKS_MAX = 5  # at what may be a cut under way; each finds the leader further on
_SIZES_AHEAD_MAX = 64


class ZooKeeperOnlooker:
    """See the module, and onlooker.Onlooker for what each call promises."""

    def __init__(self, place: ZkUrl, *, secret: str = "", gevent: bool = False) -> None:
        """Nothing is touched yet. :raises ValueError: the secret is none."""
        self._place = place
        self._session = open_session(place, owner="onlooker", secret=secret, gevent=gevent)
        self._layout = self._session.layout
        self._blobs = ZooKeeperBlobs(self._session)
        self._is_started = False
        self._known_epoch = -1  # of the term, when it was read last

    def header(self) -> Header:
        """See Onlooker.header."""
        self._start()
        for _ in range(LOOKS_MAX):
            reader = Reader(self._session, {})
            listed = reader.list_batches()
            pointed = reader.read_pointer()
            snapshots = (pointed[0].next_index,) if pointed else ()
            last = reader.read_next(listed[-1]) if listed else None
            if listed and last is None:
                continue  # cut meanwhile
            return Header(
                place=shown(self._place),
                term=self._term(),
                snapshots=snapshots,
                first_index=listed[0] if listed else max(snapshots, default=0),
                next_index=max(last.first_index + len(last.records) if last else 0, *snapshots, 0),
                parts=len(listed),
                part_name="znode",
                log_bytes=sum(self._sizes(listed)),
                torn_bytes=0,
                members=read_members(self._session),
            )
        raise Unavailable(f"{self._layout.log} is cut faster than it can be read")

    def snapshot(self, index: int | None = None) -> Snapshot | None:
        """See Onlooker.snapshot."""
        self._start()
        for _ in range(LOOKS_MAX):
            pointed = Reader(self._session, {}).read_pointer()
            if pointed is None or index not in (None, pointed[0].next_index):
                return None
            header, name = pointed
            try:
                data = b"".join(
                    self._get(self._layout.snapshot_chunk(name, n))
                    for n in range(chunk_count(header.data_bytes))
                )
            except NoNodeError:
                continue  # a newer one was written meanwhile
            if len(data) != header.data_bytes or zlib.crc32(data) != header.data_crc:
                raise Corrupt(f"{self._layout.snapshot(name)} is damaged: its checksum does not match")
            return Snapshot(header.next_index, data)
        raise Corrupt(f"{self._layout.snapshot(name)} is not whole, but it is the newest snapshot")

    def log(self, from_index: int = 0) -> Iterator[Batch]:
        """See Onlooker.log. A few batches at a time are held in memory."""
        header = self.header()
        index = max(from_index, header.first_index)
        if index >= header.next_index:
            return
        reader = Reader(self._session, {})
        first = reader.read_next(0) if index == 0 else None  # `read_from` would begin with the snapshot
        if first is not None:
            yield self._checked(first)
            index = len(first.records)
        for step in reader.read_from(index):
            if isinstance(step, Batch):
                yield self._checked(step)

    def blob_digests(self) -> list[str]:
        self._start()
        return self._blobs.digests()

    def get_blob(self, digest: str) -> bytes | None:
        self._start()
        return self._blobs.get(digest)

    def close(self) -> None:
        self._session.close()

    # --- parts

    def _start(self) -> None:
        if self._is_started:
            return
        self._session.start()
        self._is_started = True
        self._session.ask(lambda client: client.sync_async("/"))
        try:
            read_schema(self._get(self._layout.schema))
        except NoNodeError as error:
            raise Unavailable(f"there is no journal at {shown(self._place)}") from error
        except Corrupt as error:
            raise Corrupt(f"{self._layout.schema} in ZooKeeper is not a Stoker journal's: {error}") from error

    def _term(self) -> Term:
        try:
            return read_term(self._get(self._layout.epoch))
        except NoNodeError as error:
            raise Corrupt(f"{self._layout.epoch} was deleted: the journal is not whole") from error

    def _checked(self, batch: Batch) -> Batch:
        if batch.epoch > self._known_epoch:
            self._known_epoch = self._term().epoch
        if batch.epoch > self._known_epoch:
            raise Corrupt(
                f"{self._layout.batch(batch.first_index)} is of epoch {batch.epoch}, in a journal of epoch "
                f"{self._known_epoch}"
            )
        return batch

    def _sizes(self, listed: list[int]) -> Iterator[int]:
        """Yield the bytes of each batch; one that is gone has none."""
        begun: deque[Any] = deque()
        for index in listed:
            begun.append(self._session.begin(_looking_for(self._layout.batch(index))))
            if len(begun) >= _SIZES_AHEAD_MAX:
                yield self._size(begun.popleft())
        yield from map(self._size, begun)

    def _size(self, begun: Any) -> int:
        try:
            stat = self._session.finish(begun)
        except AnswerLost:
            self._session.wait_connected()
            return 0
        return stat.data_length if stat is not None else 0

    def _get(self, path: str) -> bytes:
        data: bytes = self._session.ask(getting(path))[0]
        return data


def open_session(place: ZkUrl, *, owner: str, secret: str, gevent: bool) -> Session:
    """Return a session that takes no part in the election; not started. :raises ValueError: the secret is none."""
    return Session(
        with_secret(place, secret),
        member="",
        candidate="",
        owner=owner,
        session_timeout_ms=SESSION_TIMEOUT_MS,
        gevent=gevent,
    )


def read_members(session: Session) -> tuple[str, ...]:
    """Return what the candidates of the journal's election call themselves, in no order; none if it was deleted."""
    layout, found = session.layout, []
    try:
        nodes = sorted(session.ask(listing(layout.election)))
    except NoNodeError:
        return ()
    for node in nodes:
        try:
            found.append(session.ask(getting(layout.candidate(node)))[0])
        except NoNodeError:
            continue  # it has left meanwhile
    return tuple(data.decode(errors="replace") for data in found)


def shown(place: ZkUrl) -> str:
    """Return the URL without the secret."""
    return f"zk://{','.join(f'{host}:{port}' for host, port in place.hosts)}{place.path}"


def _looking_for(path: str) -> Request:
    return lambda client: client.exists_async(path)
