"""Journals for tests: one factory a home, for the conformance suite; and small helpers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from stoker.zk.journal import Journal, Recovered
from stoker.zk.local import LocalJournal


class JournalFactory(Protocol):
    """One place where a journal is kept; `open` makes one more process' view of it."""

    takes_over: bool  # a second `lead` fences the first leader; else it is refused with Locked

    def open(self, owner: str = "test") -> Journal: ...

    def close(self) -> None:
        """Close all that `open` gave, and the place."""
        ...


class LocalFactory:
    takes_over = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "journal"
        self._opened: list[Journal] = []

    def open(self, owner: str = "test") -> Journal:
        journal: Journal = LocalJournal(str(self._directory), owner=owner)
        self._opened.append(journal)
        return journal

    def close(self) -> None:
        for journal in self._opened:
            journal.close()


JOURNAL_FACTORIES: dict[str, Callable[[Path], JournalFactory]] = {"local": LocalFactory}


def replay(recovered: Recovered) -> list[bytes]:
    """Return the recovered records; asserts that their indexes have no gap."""
    found = list(recovered.records)
    assert [index for index, _ in found] == list(
        range(recovered.snapshot_index, recovered.snapshot_index + len(found))
    )
    return [record for _, record in found]
