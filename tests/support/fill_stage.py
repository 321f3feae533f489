"""The keeper's fills without processes: fillers and the data server are played by the test."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from stoker.executor.block import BlockName
from stoker.executor.core.cache import Cache
from stoker.executor.datasets import DatasetView
from stoker.executor.fillers import FillerLink
from stoker.executor.fills import Fills
from stoker.executor.holdings import MEM, SSD, Block, Holdings, TierAccount
from stoker.executor.messages import Assignment
from stoker.executor.store import MemTier, NoTier, Tier
from support.data_servers import CLUSTER
from support.executors import TestDataset

MIB = 2**20


class Outbox:
    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def put(self, message: dict[str, Any], fds: Any = ()) -> None:
        self.said.append(message)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.said if message["t"] == kind]


class OneFiller:
    """Takes every job; the test says what comes of it."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.link = FillerLink(SimpleNamespace(outbox=self.outbox))  # type: ignore[arg-type]
        self.limit = 100

    def free(self, jobs_max: int, *, disk_jobs_max: int | None = None) -> FillerLink | None:
        return self.link if len(self.link.jobs) < self.limit else None

    def begin(self, job: Any, message: dict[str, Any], fd: int) -> None:
        self.link.begin(job)
        self.outbox.put(message)

    def end_job(self, job: Any) -> None:
        self.link.end(job)

    def cancel(self, job: Any) -> None:
        job.is_cancelled = True

    def on_state(self, message: dict[str, Any]) -> bool:
        return False


class StubbornTier(MemTier):
    """An old kernel's: a seal has to wait while bytes of the file are on their way."""

    refusals = 0

    def seal(self, fd: int) -> bool:
        self.refusals -= 1
        return self.refusals < 0 and super().seal(fd)


class Stage:
    def __init__(self, *datasets: TestDataset, ssd: Tier | None = None) -> None:
        """The blocks are on SSD where such a tier is given."""
        self.server = Outbox()
        self.tier = StubbornTier(CLUSTER)
        self.holdings = Holdings(
            {
                MEM: TierAccount(Cache(64 * MIB, 1000), self.tier),
                SSD: TierAccount(Cache(0, 0), NoTier())
                if ssd is None
                else TierAccount(Cache(64 * MIB, 1000), ssd, is_disk=True),
            },
            self.server,  # type: ignore[arg-type]
            scratch_bytes=8 * MIB,
            on_change=lambda: None,
        )
        self.filler = OneFiller()
        self.now_ms = 0
        self.view = DatasetView(datasets[-1].assignment(tier=MEM if ssd is None else SSD))
        self.view.take(self.view.assignment, Assignment(1, 1, 1, True, (), ()), 1)
        for dataset in datasets:
            self.view.manifests[dataset.manifest.version] = (dataset.manifest, "somewhere")
        self.view.manifest = datasets[-1].manifest
        self.fills = Fills(
            cluster=CLUSTER,
            holdings=self.holdings,
            manifests=SimpleNamespace(path=lambda view, version: "somewhere"),  # type: ignore[arg-type]
            fillers=self.filler,  # type: ignore[arg-type]
            datasets={self.view.key: self.view},
            now_ms=lambda: self.now_ms,
            on_settled=lambda: None,
        )

    def block(self, block_index: int = 0) -> Block:
        manifest = self.view.manifest
        assert manifest is not None
        name = BlockName(*self.view.key, block_index)
        block = self.holdings.create(self.view, manifest, name, wanted=False, now_ms=0)
        assert block is not None
        return block

    def server_lets_go(self, block: Block) -> None:
        self.holdings.server_gone(block.holding)

    def jobs(self, kind: str = "fill") -> list[dict[str, Any]]:
        return self.filler.outbox.of(kind)

    def filled(self, job: dict[str, Any], pages: list[list[int]], extents: Any = None) -> None:
        told = {"t": "filled", "job": job["job"], "filled_bytes": 0, "copied_bytes": 0, "crc_pages": pages}
        self.fills.on_message(told | {"extents": job.get("ranges", []) if extents is None else extents}, [])

    def done(self, job: dict[str, Any], *failed: list[Any]) -> None:
        self.fills.on_message({"t": "done", "job": job["job"], "failed": list(failed)}, [])
