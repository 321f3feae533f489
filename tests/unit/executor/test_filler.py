"""A real filler: bytes, valid extents, checksums and failures, from local files, web servers and other executors."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import threading
from collections.abc import Iterator, Sequence
from typing import cast

import pytest
from crc32c import crc32c

from stoker.executor.block import PAGE_BYTES
from stoker.executor.fill_job import (
    FAILURES_NAMED_MAX,
    PARTS_MAX,
    FillJob,
    FillOrder,
    PeerAddress,
    Turns,
    cut_parts,
)
from stoker.executor.fill_progress import PROGRESS_EXTENTS
from stoker.executor.manifest import FileRow
from stoker.executor.peer import Hung, Peer, PeerError
from stoker.executor.under_store import PIECE_BYTES_MAX, Piece, open_under_store
from stoker.executor.wire import Failure
from support.data_servers import CLUSTER, INCARNATION, LAUNCH, DataServer, running_data_server
from support.fillers import Block, FillerProcess, Listed, running_filler
from support.stores import HttpStore, http_store
from support.waiting import DEADLINE_S, wait_until


@pytest.fixture(scope="module")
def filler() -> Iterator[FillerProcess]:
    with running_filler() as process:
        yield process


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """200 small files, some empty, and two that are larger than a block and a piece."""
    root = tmp_path / "data"
    for i in range(200):
        path = root / f"d{i % 5}" / f"{i:04d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(i).randbytes(random.Random(-i).randint(0, 20_000) if i % 50 else 0))
    (root / "large").write_bytes(random.Random(-1).randbytes(6_000_001))
    (root / "d2" / "larger").write_bytes(random.Random(-2).randbytes(9_000_000))
    return root


@contextlib.contextmanager
def blocks_of(listed: Listed) -> Iterator[list[Block]]:
    blocks = [Block(listed, i) for i in range(listed.manifest.block_count)]
    try:
        yield blocks
    finally:
        for block in blocks:
            block.close()


def expected(listed: Listed, root: pathlib.Path, block: Block) -> bytes:
    """Return what the whole block must be, padding included."""
    manifest = listed.manifest
    origin = block.index * manifest.block_bytes
    content = bytearray(block.data_bytes)
    for row in manifest.rows_between(origin, origin + block.data_bytes).tolist():
        offset, size = manifest.extent(row)
        begin, end = max(offset, origin), min(offset + size, origin + block.data_bytes)
        content[begin - origin : end - origin] = (root / manifest.path(row)).read_bytes()[
            begin - offset : end - offset
        ]
    return bytes(content)


def assert_full(listed: Listed, root: pathlib.Path, block: Block) -> None:
    assert block.failed == [] and block.is_full()
    assert block.pages == set(range(block.layout.page_count))
    block.check_pages()
    assert block.read(0, block.data_bytes) == expected(listed, root, block)


def place(listed: Listed, path: str) -> tuple[int, int, int]:
    """Return (block, start, stop) of a file that lies in one block."""
    offset, size = listed.manifest.extent(listed.row(path))
    block, start = divmod(offset, listed.manifest.block_bytes)
    assert start + size <= listed.manifest.block_bytes
    return block, start, start + size


def has_asked(server: HttpStore, path: str) -> bool:
    """Return whether a file below `path` was asked for."""
    asked = [r["path"] for r in server.requests() if r["method"] == "GET" and not r["path"].endswith("/")]
    return any(each.startswith(path) for each in asked)


class TestFromAnUnderStore:
    def test_whole_blocks_of_local_files(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        listed = Listed(str(data), tmp_path / "mapped")
        filler.put_dataset(listed)
        with blocks_of(listed) as blocks:
            assert len(blocks) > 10
            for start in range(0, len(blocks), 4):
                filler.wait(*(filler.start(block) for block in blocks[start : start + 4]))
            for block in blocks:
                assert_full(listed, data, block)
            assert sum(block.filled_bytes for block in blocks) == listed.manifest.total_bytes
            assert sum(block.copied_bytes for block in blocks) == 0

    def test_whole_blocks_over_http(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        with http_store(data, delay="2ms") as server:
            listed = Listed(server.url, tmp_path / "mapped")
            filler.put_dataset(listed)
            server.order({"kind": "status", "status": 503, "times": 5}, {"kind": "cut", "times": 5})
            with blocks_of(listed) as blocks:
                for start in range(0, len(blocks), 4):
                    filler.wait(*(filler.start(block) for block in blocks[start : start + 4]))
                for block in blocks:
                    assert_full(listed, data, block)

    def test_some_ranges_fill_just_these(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        listed = Listed(str(data), tmp_path / "mapped")
        filler.put_dataset(listed)
        index, start, stop = place(listed, "d1/0001")
        with contextlib.closing(Block(listed, index)) as block:
            filler.fill(block, [(start, stop)])
            assert block.read(start, stop) == (data / "d1" / "0001").read_bytes()
            assert block.is_valid(start, stop) and not block.is_full() and block.failed == []
            assert block.filled_bytes == stop - start
            assert not block.is_valid(stop + 64, stop + 128)

    def test_pages_that_several_fills_made_get_their_checksums_when_asked(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        listed = Listed(str(data), tmp_path / "mapped")
        filler.put_dataset(listed)
        with contextlib.closing(Block(listed, 1)) as block:
            middle = 3 * PAGE_BYTES + 64
            filler.fill(block, [(0, 64), (middle, block.data_bytes)])
            assert block.pages == set(range(4, block.layout.page_count))
            filler.fill(block, [(64, middle)])
            assert block.is_full() and 3 not in block.pages and 0 not in block.pages and {1, 2} <= block.pages
            filler.wait(filler.start(block, kind="checksum"))
            assert_full(listed, data, block)

    def test_a_range_without_a_file_is_padding_and_valid(
        self, filler: FillerProcess, tmp_path: pathlib.Path
    ) -> None:
        for name in "ab":
            (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "data" / name).write_bytes(name.encode() * 1_048_577)
        listed = Listed(str(tmp_path / "data"), tmp_path / "mapped")
        filler.put_dataset(listed)
        offset, size = listed.manifest.extent(listed.row("a"))
        index, stop = divmod(offset + size, listed.manifest.block_bytes)
        start = -(-stop // 64) * 64
        with contextlib.closing(Block(listed, index)) as block:
            filler.fill(block, [(start, start + 128)])
            assert block.is_valid(start, start + 128) and block.failed == [] and block.filled_bytes == 0

    def test_what_changed_is_left_out_and_named_the_rest_is_filled(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        listed = Listed(str(data), tmp_path / "mapped")
        filler.put_dataset(listed)
        index, start, stop = place(listed, "d3/0003")
        (data / "d3" / "0003").write_bytes(b"x" * (stop - start))
        with contextlib.closing(Block(listed, index)) as block:
            filler.fill(block)
            assert [(row, path, code) for row, path, code, _ in block.failed] == [
                (listed.row("d3/0003"), "d3/0003", Failure.CHANGED)
            ]
            assert "refresh" in block.failed[0][3]
            assert not block.is_valid(start, start + 64) and not any(block.read(start, stop))
            assert block.is_valid(0, start)
            assert block.is_valid(-(-stop // 64) * 64, block.data_bytes)
            block.check_pages()
            touched = set(range(start // PAGE_BYTES, -(-stop // PAGE_BYTES)))
            assert block.pages == set(range(block.layout.page_count)) - touched

    @pytest.mark.parametrize("how", ["deleted", "truncated"])
    def test_a_file_over_several_blocks_that_is_gone(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path, how: str
    ) -> None:
        listed = Listed(str(data), tmp_path / "mapped")
        filler.put_dataset(listed)
        row = listed.row("large")
        offset, size = listed.manifest.extent(row)
        first, last = (
            offset // listed.manifest.block_bytes,
            (offset + size - 1) // listed.manifest.block_bytes,
        )
        assert last - first >= 4
        if how == "deleted":
            (data / "large").unlink()
        else:
            os.truncate(data / "large", size // 2)
        with blocks_of(listed) as blocks:
            for index in (first, first + 1, last):
                filler.fill(blocks[index])
                assert [failed[:3] for failed in blocks[index].failed] == [[row, "large", Failure.CHANGED]]
            assert not blocks[first + 1].is_valid(0, 64)

    def test_a_store_that_cannot_be_opened_fails_every_file_with_what_to_do(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        listed = Listed(str(data), tmp_path / "mapped")
        listed.options = {"key": "env:NOT_SET_FOR_THE_FILLER"}
        filler.put_dataset(listed)
        with contextlib.closing(Block(listed, 0)) as block:
            filler.fill(block)
            origin = listed.manifest.rows_between(0, block.data_bytes).tolist()
            assert sorted(failed[0] for failed in block.failed) == sorted(origin)
            assert {failed[2] for failed in block.failed} == {Failure.UNDER_STORE}
            assert "NOT_SET_FOR_THE_FILLER" in block.failed[0][3]
            assert not block.is_valid(0, 64)

    def test_a_store_that_dies_in_the_middle(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        with http_store(data) as server:
            listed = Listed(server.url, tmp_path / "mapped")
            filler.put_dataset(listed)
            index = listed.manifest.offset(listed.row("d2/larger")) // listed.manifest.block_bytes + 2
            server.order({"kind": "stall", "seconds": 600, "path": "larger$"})
            with contextlib.closing(Block(listed, index)) as block:
                job = filler.start(block)
                wait_until(lambda: has_asked(server, "/d2/larger"), "the request")
                server.kill()
                filler.wait(job)
                assert [f[1:3] for f in block.failed] == [["d2/larger", Failure.UNDER_STORE]]
                assert not block.is_full()

    def test_a_block_of_very_many_files(self, filler: FillerProcess, tmp_path: pathlib.Path) -> None:
        """More than are held at once, all failed: only so many are told by name."""
        count = PARTS_MAX + 500
        (tmp_path / "data").mkdir()
        rows = [FileRow(f"{i:05d}", 10, 0, b"t") for i in range(count)]
        listed = Listed(str(tmp_path / "data"), tmp_path / "mapped", rows=rows)
        filler.put_dataset(listed)
        with contextlib.closing(Block(listed, 0)) as block:
            assert listed.manifest.block_count == 1
            filler.fill(block)
            assert sorted(failed[0] for failed in block.failed) == list(range(count))
            assert sum(bool(failed[1]) for failed in block.failed) == FAILURES_NAMED_MAX
            assert {failed[2] for failed in block.failed} == {Failure.CHANGED}
        for row in rows:
            (tmp_path / "data" / row.path).write_bytes(row.path.encode() * 2)
        listed = Listed(str(tmp_path / "data"), tmp_path / "mapped2")
        filler.put_dataset(listed)
        with contextlib.closing(Block(listed, 0)) as block:
            before = filler.messages
            filler.fill(block)
            assert_full(listed, tmp_path / "data", block)
            assert filler.messages - before >= count // PROGRESS_EXTENTS

    def test_cancel_ends_a_fill_soon_and_keeps_what_was_told(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        with http_store(data) as server:
            listed = Listed(server.url, tmp_path / "mapped")
            filler.put_dataset(listed)
            index, start, stop = place(listed, "d4/0004")
            server.order({"kind": "stall", "seconds": 600, "path": "d4/0004$"})
            with contextlib.closing(Block(listed, index)) as block:
                job = filler.start(block)
                filler.wait_for(lambda: block.filled_bytes, "the first progress")
                filler.cancel(job)
                filler.wait(job)
                assert not block.is_valid(start, stop)
                block.check_pages()
                filler.cancel(job)  # too late is nothing
                server.order()
                filler.fill(block, [(start, stop)])
                assert block.is_valid(start, stop)

    def test_progress_comes_before_the_end(
        self, filler: FillerProcess, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        with http_store(data) as server:
            listed = Listed(server.url, tmp_path / "mapped")
            filler.put_dataset(listed)
            index, start, stop = place(listed, "d0/0010")
            server.order({"kind": "stall", "seconds": 1, "path": "d0/0010$", "times": 1})
            with contextlib.closing(Block(listed, index)) as block:
                filler.fill(block)
                assert block.is_full()
                told = [any(low <= start < high for low, high in extents) for extents in block.told]
                assert told[0] is False and told[-1] is True

    def test_when_the_keeper_is_gone_the_process_ends_at_once(
        self, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        with http_store(data) as server:
            listed = Listed(server.url, tmp_path / "mapped")
            process = FillerProcess()
            process.put_dataset(listed)
            block = Block(listed, 0)
            server.order({"kind": "stall", "seconds": 600})
            process.start(block)
            wait_until(lambda: has_asked(server, "/"), "a request that gets no end")
            process._socket.shutdown(2)
            assert process.process.wait(DEADLINE_S) == 0
            block.close()

    def test_started_by_hand_it_says_who_starts_it(self) -> None:
        import subprocess
        import sys

        run = subprocess.run([sys.executable, "-m", "stoker.executor.filler"], capture_output=True, text=True)
        assert run.returncode == 2 and "started by the keeper" in run.stderr


class TestFromPeers:
    @pytest.fixture
    def server(self) -> Iterator[DataServer]:
        with running_data_server() as server:
            yield server

    def peer(self, server: DataServer, **changes: object) -> dict[str, object]:
        address = {"host": server.host, "port": server.port, "launch_id": LAUNCH, "incarnation": INCARNATION}
        return address | {"local_only": True} | changes

    @pytest.fixture
    def listed(self, data: pathlib.Path, tmp_path: pathlib.Path, filler: FillerProcess) -> Listed:
        assert CLUSTER == bytes(range(16))
        listed = Listed(str(data), tmp_path / "mapped")
        filler.put_dataset(listed)
        return listed

    def test_a_full_block_is_copied_and_the_store_is_not_asked(
        self, filler: FillerProcess, listed: Listed, data: pathlib.Path, server: DataServer
    ) -> None:
        server.put_dataset(block_bytes=listed.manifest.block_bytes)
        with blocks_of(listed) as blocks:
            contents = {block.index: expected(listed, data, block) for block in blocks[:3]}
            for index, content in contents.items():
                server.put_block(index, content)
            (data / "large").unlink()
            data.rename(data.with_name("gone"))
            dead = self.peer(server, port=1)
            for block in blocks[:3]:
                filler.fill(block, peers=[dead, self.peer(server)])
                assert block.failed == [] and block.is_full()
                assert block.read(0, block.data_bytes) == contents[block.index]
                assert (block.copied_bytes, block.filled_bytes) == (block.data_bytes, 0)
                assert block.pages == set(range(block.layout.page_count))
                block.check_pages()

    def test_a_peer_that_hears_of_the_dataset_a_moment_later_is_waited_for(
        self, filler: FillerProcess, listed: Listed, data: pathlib.Path, server: DataServer
    ) -> None:
        """A replica's heartbeat may be answered before the first home's: the under store is still read once."""
        with contextlib.closing(Block(listed, 0)) as block:
            content = expected(listed, data, block)

            def tell() -> None:
                server.put_dataset(block_bytes=listed.manifest.block_bytes)
                server.put_block(0, content)

            telling = threading.Timer(0.5, tell)
            telling.start()
            filler.fill(block, peers=[self.peer(server, local_only=False)])
            telling.join()
            assert block.read(0, block.data_bytes) == content
            assert (block.copied_bytes, block.filled_bytes) == (block.data_bytes, 0)

    def test_what_a_peer_lacks_comes_from_the_store(
        self, filler: FillerProcess, listed: Listed, data: pathlib.Path, server: DataServer
    ) -> None:
        server.put_dataset(block_bytes=listed.manifest.block_bytes)
        with contextlib.closing(Block(listed, 0)) as block:
            half = PAGE_BYTES * 4
            server.put_block(0, expected(listed, data, block), valid=[(0, half)])
            filler.fill(block, [(0, half), (half, block.data_bytes)], peers=[self.peer(server)])
            assert block.is_full() and block.failed == []
            assert block.copied_bytes == half and block.filled_bytes > 0
            assert block.read(0, block.data_bytes) == expected(listed, data, block)

    @pytest.mark.parametrize("change", [{"incarnation": 5}, {"launch_id": 99}, {"port": 1}])
    def test_a_peer_that_is_gone_or_another_one(
        self,
        filler: FillerProcess,
        listed: Listed,
        data: pathlib.Path,
        server: DataServer,
        change: dict[str, int],
    ) -> None:
        server.put_dataset(block_bytes=listed.manifest.block_bytes)
        with contextlib.closing(Block(listed, 2)) as block:
            server.put_block(2, bytes(block.data_bytes))  # never to be taken
            filler.fill(block, peers=[self.peer(server, **change)])
            assert_full(listed, data, block)
            assert block.copied_bytes == 0

    def test_a_page_that_was_damaged_at_the_peer_comes_from_the_store(
        self, filler: FillerProcess, listed: Listed, data: pathlib.Path, server: DataServer
    ) -> None:
        server.put_dataset(block_bytes=listed.manifest.block_bytes)
        with contextlib.closing(Block(listed, 1)) as block:
            content = expected(listed, data, block)
            holding = server.put_block(1, content, valid=[])
            layout = block.layout
            fd = server.fds[holding]
            os.pwrite(fd, b"damage", 5 * PAGE_BYTES + 100)
            from stoker.executor import index

            index.mark_valid(fd, layout, [(0, len(content))])
            server.tier.seal(fd)
            server.channel.send({"t": "full", "holding": holding, "full_from": 1})
            filler.fill(block, peers=[self.peer(server)])
            assert_full(listed, data, block)


class DamagedPeer:
    """Tells the checksums of `content` and sends it with one byte turned."""

    def __init__(self, content: bytes, damaged_at: int) -> None:
        self.content = content
        self.damaged_at = damaged_at

    def __enter__(self) -> DamagedPeer:
        return self

    def __exit__(self, *_: object) -> None: ...

    def cut(self) -> None: ...

    def page_checksums(self, index: int, page_count: int) -> list[int]:
        return [crc32c(self.content[at : at + PAGE_BYTES]) for at in range(0, len(self.content), PAGE_BYTES)]

    def read(
        self, index: int, ranges: Sequence[tuple[int, int]], buffer: memoryview, *, local_only: bool
    ) -> list[int]:
        sent = bytearray(self.content)
        sent[self.damaged_at] ^= 1
        data = b"".join(sent[start:stop] for start, stop in ranges)
        buffer[: len(data)] = data
        return []


class WaitingPeer:
    """Sends nothing, until it is cut."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.is_cut = threading.Event()
        self.cuts = 0
        self.closed_by: threading.Thread | None = None

    def __enter__(self) -> WaitingPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed_by = threading.current_thread()

    def cut(self) -> None:
        self.cuts += 1
        self.is_cut.set()

    def page_checksums(self, index: int, page_count: int) -> list[int]:
        self.is_asked.set()
        assert self.is_cut.wait(DEADLINE_S)
        raise PeerError("cut")


class TestAJob:
    def test_who_cancels_cuts_the_connection_and_who_reads_closes_it(
        self, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        """A descriptor that is closed is another's at once: also one that is cut must be open."""
        listed = Listed(str(data), tmp_path / "mapped")
        with contextlib.closing(Block(listed, 1)) as block:
            peer = WaitingPeer()
            job = FillJob(
                FillOrder(1, 1, ((0, block.data_bytes),), (PeerAddress("h", 1, 1, 1, True),)),
                listed.manifest,
                store=lambda: open_under_store(listed.source, {}),
                connect=lambda address: cast(Peer, peer),
                hung=Hung(),
                turns=Turns(),
                fd=block.fd,
                send=block.take,
            )
            thread = threading.Thread(target=job.run)
            thread.start()
            assert peer.is_asked.wait(DEADLINE_S)
            job.cancel()
            thread.join(DEADLINE_S)
            assert peer.closed_by is thread and peer.cuts == 1
            job.cancel()
            assert peer.cuts == 1, "it is closed"

    def test_a_copy_that_was_damaged_on_the_way_comes_from_the_store(
        self, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        listed = Listed(str(data), tmp_path / "mapped")
        with contextlib.closing(Block(listed, 1)) as block:
            peer = DamagedPeer(expected(listed, data, block), 3 * PAGE_BYTES + 5)
            half = block.data_bytes // 2 // 64 * 64
            job = FillJob(
                FillOrder(1, 1, ((0, half), (half, block.data_bytes)), (PeerAddress("h", 1, 1, 1, True),)),
                listed.manifest,
                store=lambda: open_under_store(listed.source, {}),
                connect=lambda address: cast(Peer, peer),
                hung=Hung(),
                turns=Turns(),
                fd=block.fd,
                send=block.take,
            )
            job.run()
            assert block.is_full() and job.failures.as_list() == []
            block.check_pages()
            assert block.read(0, block.data_bytes) == expected(listed, data, block)
            assert block.copied_bytes == block.data_bytes - half and block.filled_bytes > 0

    def test_a_turn_that_nobody_gives_back_is_not_waited_for(
        self, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        """Whoever has the turn may be stuck in a dead network file system."""
        listed = Listed(str(data), tmp_path / "mapped")
        turns = Turns()
        store = open_under_store(listed.source, {})
        rows = [row for row in range(listed.manifest.file_count) if listed.manifest.size(row)]
        pieces = [
            Piece(
                listed.manifest.path(row),
                0,
                min(listed.manifest.size(row), PIECE_BYTES_MAX),
                listed.manifest.size(row),
                0,
                listed.manifest.token(row),
            )
            for row in rows
        ]
        stuck = turns.share(store.read(pieces), idle=lambda: None)
        next(stuck)
        assert len(list(turns.share(store.read(pieces), idle=lambda: None))) == len(pieces)
        stuck.close()


class TestParts:
    def test_parts_own_their_range_and_cover_each_file_once(
        self, data: pathlib.Path, tmp_path: pathlib.Path
    ) -> None:
        listed = Listed(str(data), tmp_path / "mapped")
        manifest = listed.manifest
        chance = random.Random(7)
        for _ in range(200):
            index = chance.randrange(manifest.block_count)
            length = manifest.block_length(index)
            start, stop = sorted(chance.sample(range(0, length + 1, 64), 2))
            parts = list(cut_parts(manifest, index, start, stop))
            position = start
            for part in parts:
                assert part.start == position
                assert part.start <= part.data_start < part.data_stop <= part.stop
                assert part.data_stop - part.data_start <= PIECE_BYTES_MAX
                position = part.stop
            assert position == stop or not parts
            origin = index * manifest.block_bytes
            rows = manifest.rows_between(origin + start, origin + stop).tolist()
            assert [part.row for part in parts] == rows
            for part in parts:
                offset, size = manifest.extent(part.row)
                assert part.data_start == max(offset - origin, start)
                assert part.data_stop == min(offset + size - origin, stop)
