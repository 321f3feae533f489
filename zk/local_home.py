"""The home of a local journal: one scheduler, always its turn, nobody follows."""

from __future__ import annotations

from collections.abc import Iterator

from stoker.zk.journal import Journal
from stoker.zk.local import LocalJournal


class LocalHome:
    """See home.Home. The journal's own lock keeps other processes out."""

    def __init__(self, directory: str, *, member: str, owner: str) -> None:
        self._member = member
        self._journal = LocalJournal(directory, owner=owner)

    def start(self) -> None:
        """Nothing: `lead` makes the directory, after it has looked at what is there."""

    def join(self) -> None:
        """Nothing: there is no election."""

    def wait_turn(self, timeout_ms: int | None = None) -> bool:
        return True

    def follow(self, from_index: int) -> Iterator[None]:
        """Yield None, and end: a local journal is read by `lead`."""
        yield None

    def stop_following(self) -> None:
        """Nothing: `follow` has ended."""

    def newest_index(self) -> int:
        return 0

    def journal(self) -> Journal:
        return self._journal

    def members(self) -> tuple[str, ...]:
        return (self._member,)

    def get_blob(self, digest: str) -> bytes | None:
        return self._journal.get_blob(digest)

    def close(self) -> None:
        self._journal.close()
