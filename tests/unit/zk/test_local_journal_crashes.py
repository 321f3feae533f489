"""A local journal killed at every call it makes to the disk, with and without the power going too."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stoker.zk.local import LocalJournal
from support.disks import Killed, PowerDisk, StoppingDisk
from support.journals import replay

PARTIALS = (0.0, 0.5, 1.0)


class Life:
    """A fixed life of a journal: what was acknowledged so far, and what was in flight when it ended."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.in_flight: list[bytes] = []
        self.snapshots: dict[int, bytes] = {}
        self.acknowledged_snapshot = 0
        self.blobs: dict[str, bytes] = {}
        self.epoch = 0

    def live(self, directory: Path, disk: StoppingDisk) -> None:
        for number in range(3):
            journal = LocalJournal(str(directory), owner="life", disk=disk)
            try:
                self.epoch = journal.lead().epoch
                for i in range(3):
                    self._append(journal, [b"%d.%d.%d" % (number, i, j) * 9 for j in range(i + 1)])
                self._put(journal, b"blob %d" % number)
                self._snapshot(journal, len(self.records) - 2, b"state %d" % number)
                self._append(journal, [b"last of %d" % number])
            finally:
                journal.close()

    def _append(self, journal: LocalJournal, batch: list[bytes]) -> None:
        self.in_flight = batch
        journal.append(len(self.records), batch)
        self.records += batch
        self.in_flight = []

    def _put(self, journal: LocalJournal, data: bytes) -> None:
        self.blobs[journal.put_blob(data)] = data

    def _snapshot(self, journal: LocalJournal, index: int, data: bytes) -> None:
        self.snapshots[index] = data
        journal.write_snapshot(index, data)
        self.acknowledged_snapshot = index

    def check(self, directory: Path) -> None:
        """Assert that the next leader finds all that was acknowledged, and the batch in flight wholly or not at all."""
        journal = LocalJournal(str(directory), owner="after")
        found = journal.lead()
        records = replay(found)
        assert found.epoch > self.epoch
        assert found.snapshot_index >= self.acknowledged_snapshot
        assert found.snapshot == (self.snapshots[found.snapshot_index] if found.snapshot_index else None)
        kept = self.records[found.snapshot_index :]
        assert records in (kept, kept + self.in_flight)
        for digest, data in self.blobs.items():
            assert journal.get_blob(digest) == data
        journal.append(found.snapshot_index + len(records), [b"goes on"])
        journal.close()
        journal = LocalJournal(str(directory), owner="after that")
        assert replay(journal.lead()) == [*records, b"goes on"]
        journal.close()


def calls_of_a_life(directory: Path) -> int:
    disk = StoppingDisk(-1)
    Life().live(directory, disk)
    return disk.calls


@pytest.mark.parametrize("partial", PARTIALS)
def test_killed_at_every_call(partial: float, tmp_path: Path) -> None:
    calls = calls_of_a_life(tmp_path / "whole")
    assert calls > 60
    for stop_at in range(calls):
        life, directory = Life(), tmp_path / f"{stop_at}"
        with pytest.raises(Killed):
            life.live(directory, StoppingDisk(stop_at, partial))
        life.check(directory)


@pytest.mark.parametrize("seed", range(4))
def test_power_lost_at_every_call(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    keeps = {0: lambda: False, 1: lambda: True}.get(seed, lambda: chance.random() < 0.5)
    for stop_at in range(calls_of_a_life(tmp_path / "whole")):
        life, directory = Life(), tmp_path / f"{stop_at}"
        disk = PowerDisk(stop_at, chance.choice(PARTIALS))
        with pytest.raises(Killed):
            life.live(directory, disk)
        disk.lose_power(str(directory), keeps)
        life.check(directory)


def test_killed_at_every_call_of_a_recovery(tmp_path: Path) -> None:
    """A process that dies while it takes over leaves what it found."""
    for stop_at in range(40):
        life, directory = Life(), tmp_path / f"{stop_at}"
        with pytest.raises(Killed):
            life.live(directory, StoppingDisk(45, 0.5))
        journal = LocalJournal(str(directory), owner="dies too", disk=StoppingDisk(stop_at))
        try:
            life.epoch = journal.lead().epoch
        except Killed:
            life.check(directory)
        else:
            journal.close()
            life.check(directory)
            break
    else:
        pytest.fail("a recovery makes fewer calls than that")
