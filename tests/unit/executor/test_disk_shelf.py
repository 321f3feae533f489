"""What the data server does with files of the SSD tier: opened when read, few at a time, and only if they are what they should be."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from stoker.executor import index
from stoker.executor.block import BlockName, block_layout
from stoker.executor.entries import (
    FILES_OPEN_MAX,
    files_open_max,
    read_exactly,
)
from stoker.executor.wire import (
    ANSWER,
    DescriptorStatus,
    Failure,
    Op,
    Status,
    encode_request,
)
from support.disk_files import DATA, Caller, Files
from support.greenlets import wait_until


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_many_files_are_there_and_few_are_open(files: Files) -> None:
    pinned = files.put(1)
    assert pinned.open()
    pinned.pins += 1
    entries = [files.put(number) for number in range(2, FILES_OPEN_MAX + 60)]
    assert files.open_count() == 1
    for entry in entries:
        assert entry.has(1, 0, DATA) and len(entry.first(0, DATA)) == DATA
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
    assert other.open(), "the same bytes under another inode"
    files.put(5)
    (files.directory / "1.1.5-5").rename(files.directory / "1.1.3-3")
    files.shelf.take_off(3)
    harmed = files.shelf.put_file(files.dataset, 30, BlockName(1, 1, 3), "1.1.3-3", DATA)
    assert not any(entry.open() for entry in (gone, short, harmed))
    assert [holding for holding, _ in files.broken] == [1, 2, 30]


def test_what_was_restored_is_read_by_its_record_alone(files: Files) -> None:
    """Its index may say more than was synced: readers of older versions are served by it no longer."""
    entry = files.put(1, full_from=2, is_restored=True)
    assert entry.open()
    layout = block_layout(DATA)
    fd = os.open(files.directory / "1.1.1-1", os.O_RDWR)
    index.mark_valid(fd, layout, [(0, DATA)])
    os.close(fd)
    assert entry.has(2, 0, DATA) and entry.has(3, 0, DATA) and not entry.has(1, 0, 64)
    partial = files.put(2, full_from=0)
    assert partial.open() and not partial.has(1, 0, 64)


def test_only_errors_of_the_file_are_held_against_it(files: Files) -> None:
    entry = files.put(1)
    files.shelf.note_error(entry, OSError(errno.EPIPE, "the caller is gone"))
    assert not files.broken
    files.shelf.note_error(entry, OSError(errno.EIO, "bad sector"))
    assert files.broken == [(1, "[Errno 5] bad sector")]
    assert entry.open()
    with pytest.raises(OSError, match="are there"):
        read_exactly(entry.fd, DATA, block_layout(DATA).file_bytes - 10)


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[list[int]]:
    """Every number that this process may have is taken; those in the list may be closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def test_without_a_descriptor_a_good_block_waits_and_is_not_told_of(files: Files) -> None:
    """It is durable: another one's descriptor is taken for it, else it is read later."""
    idle, pinned, wanted = (files.put(number) for number in (1, 2, 3))
    assert pinned.open()
    pinned.pins += 1
    with no_descriptor_left() as taken:
        assert not wanted.open(), "all that is open is being sent"
        assert pinned.fd >= 0
        os.close(taken.pop())
        assert idle.open()
        assert wanted.open(), "the idle one's is taken"
        assert idle.fd < 0 and pinned.fd >= 0
    assert idle.open() and not files.broken


def test_a_file_that_may_not_be_opened_is_not_told_of(files: Files) -> None:
    """Only what is wrong with the file itself costs the block."""
    entry, linked = files.put(1), files.put(2)
    (files.directory / "1.1.2-2").rename(files.directory / "other")
    (files.directory / "1.1.2-2").symlink_to("other")
    assert not linked.open() and [holding for holding, _ in files.broken] == [2]
    files.shelf.note_error(entry, OSError(errno.ENOMEM, "not now"))
    assert entry.open() and len(files.broken) == 1


def test_the_open_files_are_a_share_of_the_descriptors(tmp_path: Path) -> None:
    assert files_open_max(1024) == 128 and files_open_max(2**20) == FILES_OPEN_MAX
    files = Files(tmp_path, open_max=3)
    entries = [files.put(number) for number in range(1, 8)]
    for entry in entries:
        assert entry.open()
        assert files.open_count() <= 3
    for entry in entries:
        assert entry.open()
        entry.pins += 1
    assert files.open_count() == len(entries), "what is being sent is never closed"
    for entry in entries:
        files.shelf.unpin(entry)
    assert files.put(8).open() and files.open_count() == 3


def test_a_passed_descriptor_is_the_asked_blocks_however_long_its_caller_waits(tmp_path: Path) -> None:
    """Other readers' files come and go meanwhile, and their descriptors have the numbers of those that were closed."""
    files = Files(tmp_path, open_max=4)
    entries = [files.put(number) for number in range(12)]
    caller = Caller(files)
    caller.fill()
    caller.sock.sendall(encode_request(Op.DESCRIPTORS, [(2, 0, 0), (3, 0, 0)], request_id=1))
    wait_until(lambda: len(files.shelf.lent()) == 2)
    assert entries[2].fd >= 0 and entries[3].fd >= 0
    for entry in (*entries[4:], *entries[:2]):
        assert entry.open()
    answer, passed = caller.receive()
    assert answer[ANSWER.size :] == bytes([DescriptorStatus.PASSED] * 2)
    assert [os.pread(fd, DATA, 0) for fd in passed] == [bytes([number]) * DATA for number in (2, 3)]
    assert not entries[2].pins and not entries[3].pins
    for fd in passed:
        os.close(fd)
    caller.close()
    assert not files.shelf.lent()


def test_checksums_that_cannot_be_read_are_told_of(files: Files) -> None:
    """The file was cut after it was opened: a short read is an error of the file."""
    entry = files.put(1)
    assert entry.open()
    os.truncate(files.directory / "1.1.1-1", block_layout(DATA).trailer_offset)
    caller = Caller(files)
    caller.sock.sendall(encode_request(Op.CRCS, [(1, 0, 0)], request_id=1))
    wait_until(lambda: caller.greenlet.dead or len(files.broken) > 0)
    op, status, *_ = ANSWER.unpack(caller.sock.recv(ANSWER.size))
    assert (op, status) == (Op.CRCS, Status.UNAVAILABLE)
    assert [holding for holding, _ in files.broken] == [1]
    caller.close()


def test_small_reads_that_a_file_does_not_give_fail_and_the_conversation_goes_on(files: Files) -> None:
    """One range of one, and one of several: the caller asks another executor for that range alone."""
    harmed, good = files.put(1), files.put(2)
    assert harmed.open()
    os.truncate(files.directory / "1.1.1-1", 0)
    caller = Caller(files)
    for ranges, given in (([(1, 0, 100)], 0), ([(2, 0, 100), (1, 0, 100), (2, 50, 100)], 200)):
        files.broken.clear()
        caller.sock.sendall(encode_request(Op.READ, ranges, request_id=1))
        wait_until(lambda: caller.greenlet.dead or len(files.broken) > 0)
        op, status, failed, _, payload_bytes, *_ = ANSWER.unpack(caller.sock.recv(ANSWER.size))
        assert (op, status, failed) == (Op.READ, Status.OK, 1)
        payload = caller.sock.recv(payload_bytes, socket.MSG_WAITALL)
        names_bytes = int.from_bytes(payload[:4], "little")
        ((number, code, _),) = msgpack.unpackb(payload[4 : 4 + names_bytes])
        assert ranges[number] == (1, 0, 100) and code == Failure.OVERLOADED
        assert payload[4 + names_bytes :] == bytes([2]) * given
        assert [holding for holding, _ in files.broken] == [1]
    assert not harmed.pins and not good.pins
    caller.close()
