"""Block files of the MEM tier."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from stoker.executor.block import BLOCK_BYTES_DEFAULT, BlockName, block_layout
from stoker.executor.store import MemTier, file_bytes

NAME = BlockName(3, 1, 9)
CLUSTER = bytes(range(16))
BYTES = 3 * 65536 + 100


@pytest.fixture
def fd() -> Iterator[int]:
    made = MemTier(CLUSTER).create(NAME, BYTES)
    yield made
    os.close(made)


@pytest.mark.parametrize("data_bytes", [1, 4096, BYTES, BLOCK_BYTES_DEFAULT])
def test_a_whole_file_in_pages_is_what_a_block_takes(data_bytes: int) -> None:
    made = MemTier(CLUSTER).create(NAME, data_bytes)
    os.pwrite(made, b"x" * data_bytes, 0)
    layout = block_layout(data_bytes)
    os.pwrite(made, b"x" * (layout.file_bytes - layout.crc_offset), layout.crc_offset)
    found = os.fstat(made)
    assert found.st_size == layout.file_bytes
    assert found.st_blocks * 512 <= file_bytes(data_bytes) < found.st_size + 4096
    os.close(made)


def test_an_empty_block_takes_next_to_nothing_yet(fd: int) -> None:
    assert os.fstat(fd).st_blocks * 512 <= 8192


def test_a_block_is_nowhere_in_the_file_system(fd: int) -> None:
    assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:stoker-3.1.9 (deleted)"
    assert not os.get_inheritable(fd)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_reader_that_takes_nothing_does_not_keep_a_block_from_being_sealed(family: int) -> None:
    """What sendfile has put in a socket are pages of the file; the older seal against writes is refused because of them."""
    made = MemTier(CLUSTER).create(NAME, BLOCK_BYTES_DEFAULT)
    os.pwrite(made, b"x" * 2**20, 0)
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
    ours.setblocking(False)
    sent = os.sendfile(ours.fileno(), made, 0, 2**20)
    assert sent > 0 and MemTier(CLUSTER).seal(made)
    with pytest.raises(OSError):
        os.pwrite(made, b"evil", 0)
    assert theirs.recv(sent, socket.MSG_WAITALL) == b"x" * sent
    for each in (ours, theirs):
        each.close()
    os.close(made)


def test_a_sealed_block_cannot_be_written_by_anybody(fd: int) -> None:
    os.pwrite(fd, b"data", 0)
    tier = MemTier(CLUSTER)
    with pytest.raises(OSError) as cut:
        os.ftruncate(fd, 5)  # not even before it is full
    assert cut.value.errno == errno.EPERM
    tier.seal(fd)
    tier.seal(fd)
    reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    with pytest.raises(OSError):
        os.open(f"/proc/self/fd/{reopened}", os.O_RDWR | os.O_TRUNC)
    with pytest.raises(OSError) as written:
        os.pwrite(fd, b"evil", 0)
    assert written.value.errno == errno.EPERM
    assert os.pread(fd, 4, 0) == b"data"
    os.close(reopened)
