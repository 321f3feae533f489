"""One scheduler's membership at the place where the journal is: candidates, their turns, and what followers see.

Two homes, one interface: a local directory, where there is one scheduler and nobody follows (`LocalHome`), and a path in
ZooKeeper (`ZooKeeperHome`). A home lives for one session: after Unavailable, close it and open another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from stoker.zk.core.leadership import SESSION_TIMEOUT_MS
from stoker.zk.journal import Journal
from stoker.zk.local_home import LocalHome
from stoker.zk.paths import FileUrl, parse_journal_url


class Batch(NamedTuple):
    """What one append made durable, or the end of it from where the follower asked."""

    first_index: int
    epoch: int
    records: list[bytes]


class Snapshot(NamedTuple):
    """The state just before record `next_index`."""

    next_index: int
    data: bytes


class Home(Protocol):
    """See the module. Any thread (under gevent: greenlet) may call; each method from one at a time."""

    def start(self) -> None:
        """Connect, make the place on first use, check that it is ours and of a format that we know.

        :raises Unavailable, Corrupt, TooNew, Denied: no answer in time, or a read-only server; another application's
            data; a newer format; no right. Nothing was changed.
        """
        ...

    def join(self) -> None:
        """Become a candidate, once. :raises Unavailable: ..."""
        ...

    def wait_turn(self, timeout_ms: int | None = None) -> bool:
        """Wait until this candidate is the first; False when the time is over. :raises Unavailable: the session ended."""
        ...

    def follow(self, from_index: int) -> Iterator[Snapshot | Batch | None]:
        """Yield what the journal says from record `from_index` on, for ever, and None in between.

        None says: all was yielded that the journal held at some moment since the None before. More may be there already.
        A Snapshot comes first where those records are gone, and also later, whenever the journal was cut beyond us.

        :raises Unavailable, Corrupt, TooNew: the session ended; what is there cannot be trusted, or not be read.
        """
        ...

    def stop_following(self) -> None:
        """Let `follow` end soon, from any thread; idempotent."""
        ...

    def newest_index(self) -> int:
        """Return the index after the newest record that this follower has heard of."""
        ...

    def journal(self) -> Journal:
        """Return the journal, to be led once it is our turn; one a home."""
        ...

    def members(self) -> tuple[str, ...]:
        """Return what all candidates call themselves, in the order of their turns: the first leads, or is about to."""
        ...

    def get_blob(self, digest: str) -> bytes | None:
        """As Journal.get_blob, for followers."""
        ...

    def close(self) -> None:
        """Leave: the next candidate takes over at once. Idempotent, and soon over also where nothing answers."""
        ...


def open_home(
    url: str,
    *,
    member: str,
    owner: str,
    session_timeout_ms: int = SESSION_TIMEOUT_MS,
    gevent: bool = False,
    secret: str = "",
    process: str = "",
) -> Home:
    """Return the home that `url` names (`file:DIR`, `zk://[USER:SECRET@]HOST:PORT,.../PATH`); nothing is touched yet.

    `member`: what the others are told about us. `owner` says to people who has the journal. `gevent`: the caller's
    process runs on gevent. `secret` takes the place of the one in the URL; `env:NAME` and `file:PATH` are resolved.
    `process`: a uuid's hex digits that name the caller's process, where it opens one home after another; a new one takes
    out of the election what those before it could not when they were closed.

    :raises ValueError: the URL or the secret is none; no message holds the secret.
    """
    place = parse_journal_url(url)
    if isinstance(place, FileUrl):
        return LocalHome(place.directory, member=member, owner=owner)
    from stoker.zk.zookeeper import ZooKeeperHome  # kazoo is not needed for a local journal

    return ZooKeeperHome(
        place,
        member=member,
        owner=owner,
        session_timeout_ms=session_timeout_ms,
        gevent=gevent,
        secret=secret,
        process=process,
    )
