"""What the data server does with files of the SSD tier: opened when read, few at a time, and only if they are what they should be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stoker.executor import index
from stoker.executor.block import BlockName, block_layout, encode_header
from stoker.executor.loans import FILES_OPEN_MAX, DiskFiles, Entry, Shelf, read_exactly
from support.data_servers import CLUSTER

DATA = 1_000


class Files:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.gone: list[int] = []
        self.broken: list[tuple[int, str]] = []
        self.shelf = Shelf(self.gone.append)
        self.shelf.files = DiskFiles(str(directory), CLUSTER, lambda *told: self.broken.append(told))
        self.dataset = self.shelf.put_dataset(1, 1, 1, 2**20)

    def put(self, number: int, *, full_from: int = 1, is_restored: bool = False) -> Entry:
        name, layout = BlockName(1, 1, number), block_layout(DATA)
        path = self.directory / f"1.1.{number}-{number}"
        with open(path, "wb") as file:
            file.truncate(layout.file_bytes)
            file.seek(layout.trailer_offset)
            file.write(encode_header(CLUSTER, name, DATA))
        entry = self.shelf.put_file(self.dataset, number, name, path.name, DATA, is_restored=is_restored)
        entry.full_from, entry.sealed = full_from, full_from > 0
        return entry

    def open_count(self) -> int:
        found = 0
        for name in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{name}"
            found += os.path.exists(path) and os.readlink(path).startswith(f"{self.directory}/")
        return found


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_many_files_are_there_and_few_are_open(files: Files) -> None:
    pinned = files.put(1)
    assert pinned.has(1, 0, DATA)
    pinned.pins += 1
    entries = [files.put(number) for number in range(2, FILES_OPEN_MAX + 60)]
    assert files.open_count() == 1
    for entry in entries:
        assert entry.has(1, 0, DATA) and len(read_exactly(entry.fd, DATA, 0)) == DATA
    assert files.open_count() == FILES_OPEN_MAX
    assert pinned.fd >= 0 and entries[0].fd < 0, "what is being sent stays open"
    with pytest.raises(OSError):
        os.pwrite(entries[-1].fd, b"evil", 0)
    files.shelf.unpin(pinned)
    for entry in (pinned, *entries):
        files.shelf.take_off(entry.holding)
    assert files.open_count() == 0 and len(files.gone) == len(entries) + 1 and not files.broken


def test_a_file_that_is_not_the_blocks_is_told_of_and_not_read(files: Files) -> None:
    gone, short, other = (files.put(number) for number in (1, 2, 3))
    (files.directory / "1.1.1-1").unlink()
    os.truncate(files.directory / "1.1.2-2", DATA)
    (files.directory / "1.1.4-4").write_bytes((files.directory / "1.1.3-3").read_bytes())
    (files.directory / "1.1.4-4").rename(files.directory / "1.1.3-3")
    assert other.has(1, 0, 10), "the same bytes under another inode"
    files.put(5)
    (files.directory / "1.1.5-5").rename(files.directory / "1.1.3-3")
    files.shelf.take_off(3)
    harmed = files.shelf.put_file(files.dataset, 30, BlockName(1, 1, 3), "1.1.3-3", DATA)
    assert not any(entry.has(1, 0, 10) for entry in (gone, short, harmed))
    assert [holding for holding, _ in files.broken] == [1, 2, 30]


def test_what_was_restored_is_read_by_its_record_alone(files: Files) -> None:
    """Its index may say more than was synced: readers of older versions are served by it no longer."""
    entry = files.put(1, full_from=2, is_restored=True)
    layout = block_layout(DATA)
    fd = os.open(files.directory / "1.1.1-1", os.O_RDWR)
    index.mark_valid(fd, layout, [(0, DATA)])
    os.close(fd)
    assert entry.has(2, 0, DATA) and entry.has(3, 0, DATA) and not entry.has(1, 0, 64)
    partial = files.put(2, full_from=0)
    assert not partial.has(1, 0, 64)


def test_only_errors_of_the_file_are_held_against_it(files: Files) -> None:
    entry = files.put(1)
    files.shelf.note_error(entry, OSError(errno.EPIPE, "the caller is gone"))
    assert not files.broken
    files.shelf.note_error(entry, OSError(errno.EIO, "bad sector"))
    assert files.broken == [(1, "[Errno 5] bad sector")]
    assert entry.open()
    with pytest.raises(OSError, match="are there"):
        read_exactly(entry.fd, DATA, block_layout(DATA).file_bytes - 10)
