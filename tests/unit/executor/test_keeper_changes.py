"""Files, manifests, blocks and stores that are not what they were: right bytes or a clear failure."""

from __future__ import annotations

import os
from pathlib import Path

from stoker.executor.wire import DescriptorStatus, Failure, ReadFlag
from support.executors import ALL, FakeScheduler, TestDataset, check_all, make_files, running_executor
from support.waiting import wait_until


def test_a_manifest_that_comes_late_or_wrong_holds_up_readers_but_breaks_nothing(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path, 10)
    other = make_files(tmp_path / "other", 5, seed=9)
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler) as executor:
        client = executor.wait_dataset()
        wrong = {"HTTP 404": None, "a scheduler gave dataset": other.bundle, "bundle": b"\x05\0\0\0garbage"}
        for reason, body in wrong.items():
            if body is not None:
                scheduler.bundles["set", 1] = body
            failed, _ = client.read_failing(*dataset.ranges("a/0001.bin"))
            assert failed[0][0] == Failure.OVERLOADED and reason in failed[0][1]
        scheduler.serve(dataset)
        scheduler.wait_full(dataset.manifest.block_count)
        check_all(client, dataset)
        client.close()
        stranger = executor.connect(dataset_version=9)  # of a version that nobody has any more
        failed, _ = stranger.read_failing((10**6, 0, 1))
        assert failed[0][0] == Failure.CHANGED and "version 9" in failed[0][1]
        stranger.close()


def test_a_damaged_block_is_dropped_and_fetched_again(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path, 20)
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment())
    with running_executor(scheduler) as executor:
        client = executor.wait_dataset()
        path = "b/0002.bin"
        client.read(*dataset.ranges(path))  # a block that is not full is not sealed: memory can still go bad
        [(block, start, length), *_] = dataset.ranges(path)
        damage(executor.children()["server"][0], block, start + length // 2)
        assert client.read((block, start, length)) != dataset.data(path)[:length]
        failed, _ = client.read_failing((block, start, length), flags=ReadFlag.CHECK)
        assert failed[0][0] == Failure.CORRUPT
        wait_until(
            lambda: client.read((block, start, length)) == dataset.data(path)[:length], "fetched again"
        )
        client.close()


def damage(pid: int, block: int, offset: int) -> None:
    """Flip a byte of the open block of a data server."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        link = f"/proc/{pid}/fd/{name}"
        if f"memfd:stoker-1.1.{block} " in os.readlink(link):
            with open(link, "r+b", buffering=0) as file:
                file.seek(offset)
                byte = file.read(1)
                file.seek(offset)
                file.write(bytes([byte[0] ^ 255]))
            return
    raise AssertionError("no such block is open")


def test_a_changed_file_fails_by_name_and_all_else_is_served(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    dataset = make_files(tmp_path, 40)
    kept = dataset.data("b/0002.bin")
    scheduler.serve(dataset)
    scheduler.assign(dataset.assignment())
    with running_executor(scheduler) as executor:
        client = executor.wait_dataset()
        assert client.read(*dataset.ranges("b/0002.bin")) == kept
        (tmp_path / "b" / "0002.bin").write_bytes(b"new")
        (tmp_path / "b" / "0004.bin").write_bytes(b"other bytes")
        (tmp_path / "a" / "0001.bin").unlink()
        assert client.read(*dataset.ranges("b/0002.bin")) == kept  # its version is still served
        ranges = [r for path in ("b/0006.bin", "b/0004.bin", "a/0001.bin") for r in dataset.ranges(path)]
        failed, data = client.read_failing(*ranges)
        assert data == dataset.data("b/0006.bin")
        codes = {code for code, _ in failed.values()}
        assert codes <= {Failure.CHANGED, Failure.UNDER_STORE} and Failure.CHANGED in codes
        assert any("b/0004.bin" in text for _, text in failed.values())
        scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
        scheduler.wait(
            lambda: (
                (r := scheduler.residency()) is not None
                and r.wanted_version == 1
                and r.wanted_settled == r.wanted_blocks > 0
            ),
            "everything is settled",
        )
        told = scheduler.residency()
        assert told.failed_count == 2
        assert {f.path for f in told.failures} == {"b/0004.bin", "a/0001.bin"}
        assert told.wanted_cached_files == len(dataset.rows) - 2
        assert 0 < told.wanted_full < told.wanted_blocks
        client.close()


def test_a_refreshed_dataset_serves_both_versions_without_a_mixture(
    tmp_path: Path, scheduler: FakeScheduler
) -> None:
    old = make_files(tmp_path, 40)
    before = {row.path: old.data(row.path) for row in old.rows}
    scheduler.serve(old)
    scheduler.assign(old.assignment())
    with running_executor(scheduler) as executor:
        early = executor.wait_dataset()
        assert early.read(*old.ranges("b/0002.bin")) == before["b/0002.bin"]
        (tmp_path / "b" / "0002.bin").write_bytes(b"two" * 1000)  # cached before it changed
        (tmp_path / "b" / "0004.bin").write_bytes(b"four" * 1000)  # not cached
        (tmp_path / "a" / "0001.bin").unlink()
        new = TestDataset(str(tmp_path), version=2, previous=old.manifest)
        scheduler.serve(new)
        scheduler.assign(new.assignment(wanted=ALL, wanted_version=1))
        scheduler.wait_full(new.manifest.block_count)
        late = executor.connect(dataset_version=2)
        check_all(late, new)
        statuses, fds = late.descriptors(*range(new.manifest.block_count))
        assert set(statuses) == {DescriptorStatus.PASSED}
        for fd in fds:
            os.close(fd)
        assert early.read(*old.ranges("b/0002.bin")) == before["b/0002.bin"]
        for path in ("b/0004.bin", "a/0001.bin"):
            failed, data = early.read_failing(*old.ranges(path))
            assert failed and not data, "zeros of a hole must not be served"
        unchanged = [row for row in new.rows if before.get(row.path) == new.data(row.path) and row.size]
        for row in unchanged:
            assert early.read(*old.ranges(row.path)) == before[row.path]
        early.close()
        late.close()


def test_an_under_store_that_comes_back_is_tried_again(tmp_path: Path, scheduler: FakeScheduler) -> None:
    dataset = make_files(tmp_path / "data", 10)
    scheduler.serve(dataset)
    os.rename(tmp_path / "data", tmp_path / "away")
    os.symlink("data", tmp_path / "data")  # "too many levels of symbolic links": not that the files are gone
    scheduler.assign(dataset.assignment(wanted=ALL, wanted_version=1))
    with running_executor(scheduler):
        scheduler.wait(lambda: (r := scheduler.residency()) is not None and r.failed_count > 0, "failures")
        assert {f.code for f in scheduler.residency().failures} == {Failure.UNDER_STORE}
        os.unlink(tmp_path / "data")
        os.rename(tmp_path / "away", tmp_path / "data")
        told = scheduler.wait_full(dataset.manifest.block_count)
        assert told.failed_count == 0 and told.failures == ()
