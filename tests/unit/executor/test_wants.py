"""Where readers' ranges are found while the SSD tier's files are still being made."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import numpy as np
import pytest

from stoker.executor.disk import open_directory
from stoker.executor.disk_calls import DiskCalls
from stoker.executor.disk_tier import FILE_CALLS_MAX, DiskTier
from stoker.executor.wants import Wants
from support.block_disks import BOOT, HangingDisk, hung
from support.data_servers import CLUSTER
from support.executors import TestDataset
from support.fill_stage import Stage
from support.greenlets import wait_until


class WantStage(Stage):
    """Two versions of a dataset; the second has not all files of the first, and so a hole. The disk hangs when it is told to."""

    def __init__(self, root: Path) -> None:
        data = root / "data"
        data.mkdir()
        for number in range(3):
            (data / f"{number}").write_bytes(random.Random(number).randbytes(20_000))
        self.first = TestDataset(str(data))
        (data / "1").unlink()
        self.second = TestDataset(str(data), version=2, previous=self.first.manifest)
        self.lock = str(root / "lock")
        disk = HangingDisk(self.lock)
        self.ssd = DiskTier(
            str(root / "disk"),
            CLUSTER,
            open_directory(str(root / "disk"), CLUSTER, disk=disk, boot_id=BOOT, asked_bytes=2**30),
            disk=disk,
            file_calls=DiskCalls(FILE_CALLS_MAX),
            step_calls=DiskCalls(1),
            spawn=gevent.spawn,
            now_ms=lambda: self.now_ms,
        )
        super().__init__(self.first, self.second, ssd=self.ssd)
        # This is a home of all blocks.
        self.view.table = np.zeros((1, 1), dtype=np.uint16)
        self.view.ranks = np.zeros(1, dtype=np.int16)
        self.wants = Wants(
            server=self.server,  # type: ignore[arg-type]
            holdings=self.holdings,
            fills=self.fills,
            manifests=SimpleNamespace(),  # type: ignore[arg-type]
            datasets={self.view.key: self.view},
            spawn=gevent.spawn,
            now_ms=lambda: self.now_ms,
        )

    def ask(self, want: int, version: int, path: str, *, local: bool = False) -> None:
        """Ask for 64 bytes of where a file is in the first version."""
        offset, _ = self.first.manifest.extent(self.first.manifest.find(path))
        items = [[0, offset, offset + 64]]
        self.wants.take(
            {
                "want": want,
                "dataset": 1,
                "generation": 1,
                "version": version,
                "items": items,
                "local": local,
            }
        )

    def answer(self, want: int) -> dict[str, Any]:
        return wait_until(lambda: next((m for m in self.server.of("have") if m["want"] == want), {}))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[WantStage]:
    yield WantStage(tmp_path)


def test_a_hole_is_in_no_block_of_which_the_data_server_has_not_heard(stage: WantStage) -> None:
    """No file owns it, so all that it needs is there, in whatever block: also in one that is yet to be made."""
    with hung(stage.lock):
        block = stage.block(0)
        stage.ask(1, 2, "1")
        stage.ask(2, 2, "1", local=True)
        gevent.sleep(0.05)
        assert not block.server_has
        assert [(m["want"], m["places"]) for m in stage.server.of("have")] == [(2, [0])], "it is not here yet"
    assert stage.answer(1)["places"] == [block.holding] and not stage.answer(1)["failed"]
    told = [message["t"] for message in stage.server.said if message["t"] in ("block", "have")]
    assert told == ["have", "block", "have"]
    stage.ask(3, 2, "1")
    assert stage.answer(3)["places"] == [block.holding], "at once, from now on"


def test_a_block_that_became_full_while_its_file_was_waited_for_is_not_written_to(stage: WantStage) -> None:
    """A reader of an older version needs of it what it does not have: that is read through."""
    with hung(stage.lock):
        block = stage.block(0)
        stage.ask(1, 1, "1")
        gevent.sleep(0.05)
        assert block.pins and not stage.jobs()
        block.is_full = True
    (job,) = wait_until(lambda: stage.jobs())
    assert not block.jobs and not block.queued
    stage.filled(job, [])
    stage.done(job)
    ((scratch, _),) = stage.answer(1)["scratch"]
    assert stage.answer(1)["places"] == [scratch] != [block.holding]
