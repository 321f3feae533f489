"""Places of journals for tests of those who look on, back up and restore: a directory, a path in ZooKeeper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from stoker.zk.home import Batch, Snapshot
from stoker.zk.journal import Journal
from stoker.zk.onlooker import Onlooker, read_state
from stoker.zk.places import open_onlooker, open_target
from stoker.zk.restore import Target
from support.journals import JOURNAL_FACTORIES, JournalFactory, LocalFactory, ZooKeeperFactory

PLACES = sorted(JOURNAL_FACTORIES)


class Place(NamedTuple):
    """Where a journal may be; `url` as the command line has it. Nothing is there yet."""

    url: str
    factory: JournalFactory

    @property
    def is_local(self) -> bool:
        return self.url.startswith("file:")

    def leader(self) -> Journal:
        """Return a journal to be led."""
        return self.factory.open()

    def onlooker(self) -> Onlooker:
        return open_onlooker(self.url)

    def target(self) -> Target:
        return open_target(self.url, owner="restorer")


def make_place(kind: str, directory: Path) -> Iterator[Place]:
    """Yield a place of this kind; for fixtures."""
    factory = JOURNAL_FACTORIES[kind](directory)
    if isinstance(factory, ZooKeeperFactory):
        url = factory.url
    else:
        assert isinstance(factory, LocalFactory)
        url = f"file:{directory / 'journal'}"
    yield Place(url, factory)
    factory.close()


def looking(place: Place, look: Callable[[Onlooker], object]) -> object:
    """Return what `look` returns of an onlooker, which is closed then."""
    onlooker = place.onlooker()
    try:
        return look(onlooker)
    finally:
        onlooker.close()


def state_of(onlooker: Onlooker) -> tuple[int, bytes | None, list[bytes]]:
    """Return the index of the newest snapshot, its data, and the records after it, as `read_state` gives them."""
    index, snapshot, records = 0, None, []
    for part in read_state(onlooker):
        if isinstance(part, Snapshot):
            index, snapshot, records = part.next_index, part.data, []
        else:
            assert isinstance(part, Batch) and part.first_index == index + len(records)
            records += part.records
    return index, snapshot, records
