"""A real filler process whose keeper is the test, and datasets listed from real stores for it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crc32c import crc32c

from stoker.executor import index
from stoker.executor.block import PAGE_BYTES, BlockName, block_layout
from stoker.executor.channel import Channel, channel_pair
from stoker.executor.manifest import FileRow, Manifest, build, map_manifest, write_mapped
from stoker.executor.store import MemTier
from stoker.executor.under_store import open_under_store
from support.waiting import DEADLINE_S

CLUSTER = bytes(range(16))
DATASET_ID = 1


class Listed:
    """A dataset version, listed and mapped."""

    def __init__(
        self,
        source: str,
        path: pathlib.Path,
        options: Mapping[str, str] | None = None,
        *,
        rows: Sequence[FileRow] | None = None,
    ) -> None:
        """List `source` (or take `rows`) and write the mapped manifest to `path`."""
        self.source = source
        self.options = dict(options or {})
        if rows is None:
            rows = list(open_under_store(source, self.options).list(lambda text: None))
        built = build(rows, cluster=CLUSTER, dataset_id=DATASET_ID, generation=1, version=1, slot_bytes=2**30)
        write_mapped(built.root, built.parts.__getitem__, str(path))
        self.path = path
        self.manifest: Manifest = map_manifest(path)

    def row(self, path: str) -> int:
        row = self.manifest.find(path)
        assert row >= 0, path
        return row


class Block:
    """A block's file, and what the filler said of it."""

    def __init__(self, listed: Listed, block_index: int) -> None:
        self.index = block_index
        self.data_bytes = listed.manifest.block_length(block_index)
        self.layout = block_layout(self.data_bytes)
        self.fd = MemTier(CLUSTER).create(BlockName(DATASET_ID, 1, block_index), self.data_bytes)
        self.failed: list[list[Any]] = []
        self.filled_bytes = 0
        self.copied_bytes = 0
        self.pages: set[int] = set()
        self.told: list[list[tuple[int, int]]] = []  # the extents of each message

    def take(self, message: Mapping[str, Any]) -> None:
        """Do with a "filled" message what a keeper does."""
        extents = [(start, stop) for start, stop in message["extents"]]
        self.told.append(extents)
        for start, stop in extents:
            assert not index.is_valid(self.fd, self.layout, start, stop), "an extent was told twice"
            assert start % 64 == 0
        index.mark_valid(self.fd, self.layout, extents)
        index.mark_known(self.fd, self.layout, [(first, stop) for first, stop in message["crc_pages"]])
        for first, stop in message["crc_pages"]:
            assert self.pages.isdisjoint(range(first, stop)), "a page was told twice"
            self.pages.update(range(first, stop))
        self.filled_bytes += message["filled_bytes"]
        self.copied_bytes += message["copied_bytes"]

    def is_full(self) -> bool:
        return index.is_valid(self.fd, self.layout, 0, self.data_bytes)

    def is_valid(self, start: int, stop: int) -> bool:
        return index.is_valid(self.fd, self.layout, start, stop)

    def read(self, start: int, stop: int) -> bytes:
        return os.pread(self.fd, stop - start, start)

    def check_pages(self) -> None:
        """Assert that each told checksum is that of the page's bytes."""
        for page in self.pages:
            stored = os.pread(self.fd, 4, self.layout.crc_offset + 4 * page)
            data = self.read(page * PAGE_BYTES, min((page + 1) * PAGE_BYTES, self.data_bytes))
            assert stored == struct.pack("<I", crc32c(data)), f"page {page}"

    def close(self) -> None:
        os.close(self.fd)


class FillerProcess:
    """A filler; every message of it is taken by a thread here, as a keeper does."""

    def __init__(self, **environment: str) -> None:
        mine, its = channel_pair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stoker.executor.filler", str(its.fileno())],
            pass_fds=[its.fileno()],
            env=os.environ | environment,
        )
        its.close()
        self._socket = mine
        self.channel = Channel(mine)
        self._jobs = 0
        self._blocks: dict[str, Block] = {}
        self._done: set[str] = set()
        self.messages = 0
        self.error: BaseException | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def put_dataset(self, listed: Listed, *, version: int = 1) -> None:
        self.channel.send(
            {
                "t": "dataset",
                "id": DATASET_ID,
                "generation": 1,
                "version": version,
                "source": listed.source,
                "options": listed.options,
                "manifest": str(listed.path),
            }
        )

    def start(
        self,
        block: Block,
        ranges: Sequence[tuple[int, int]] | None = None,
        *,
        peers: Sequence[Mapping[str, Any]] = (),
        version: int = 1,
        kind: str = "fill",
    ) -> str:
        """Order a fill (all of the block, unless `ranges`); return its job."""
        self._jobs += 1
        job = f"f{self._jobs}"
        self._blocks[job] = block
        whole = ranges is None
        message = {
            "t": kind,
            "job": job,
            "id": DATASET_ID,
            "generation": 1,
            "version": version,
            "index": block.index,
            "ranges": [[0, block.data_bytes]] if ranges is None else [list(r) for r in ranges],
            "peers": list(peers),
            "cluster": CLUSTER,
            "whole": whole,
        }
        self.channel.send(message, [block.fd])
        return job

    def fill(self, block: Block, ranges: Sequence[tuple[int, int]] | None = None, **options: Any) -> Block:
        """Order a fill and wait for its end."""
        self.wait(self.start(block, ranges, **options))
        return block

    def cancel(self, job: str) -> None:
        self.channel.send({"t": "cancel", "job": job})

    def hurry(self, job: str, ranges: Sequence[tuple[int, int]]) -> None:
        self.channel.send({"t": "hurry", "job": job, "ranges": [list(r) for r in ranges]})

    def wait(self, *jobs: str) -> None:
        """Wait until the jobs are done."""
        self.wait_for(lambda: self._done >= set(jobs), f"{jobs} to end")

    def wait_for(self, condition: Any, what: str) -> None:
        """Wait until `condition()`, which is looked at after each message."""
        with self._change:
            assert self._change.wait_for(lambda: self.error or condition(), DEADLINE_S), f"in vain: {what}"
        if self.error:
            raise self.error

    def end(self) -> int:
        """End the channel, as a dying keeper does; return the filler's exit code."""
        self.channel.close()
        return self.process.wait(DEADLINE_S)

    def _receive(self) -> None:
        try:
            while (received := self.channel.receive()) is not None:
                with self._change:
                    self._take(received[0])
                    self._change.notify_all()
        except OSError:
            return  # this end was closed
        except BaseException as error:
            with self._change:
                self.error = error
                self._change.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        if message["t"] in ("ready", "opened"):
            return
        self.messages += 1
        job = message["job"]
        assert job not in self._done, "a message after the last"
        if message["t"] == "filled":
            self._blocks[job].take(message)
            return
        assert message["t"] == "done"
        self._blocks[job].failed += message["failed"]
        self._done.add(job)


@contextlib.contextmanager
def running_filler(**environment: str) -> Iterator[FillerProcess]:
    filler = FillerProcess(**environment)
    try:
        yield filler
    finally:
        filler._socket.shutdown(2)
        try:
            code = filler.process.wait(DEADLINE_S)
        finally:
            filler.process.kill()
            filler.process.wait()
        filler._thread.join(DEADLINE_S)
        filler.channel.close()
        assert code == 0, f"the filler ended with {code}"
