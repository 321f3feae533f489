"""The SSD tier's directory: every call by which it is changed, whose it is, and what of it counts at a start.

    lock          held by the keeper that owns the directory, with its pid
    format        JSON: the format, and the cluster whose blocks these are
    boot          the boot id of the machine when a keeper last began here
    index         see stoker.executor.core.disk_index
    blocks/       the block files

One cluster's executor has a directory for as long as the executors of one slot follow each other. A directory that says
otherwise is refused and left as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import mmap
import os
from collections.abc import Iterable
from typing import NamedTuple

from stoker.executor import index
from stoker.executor.block import BLOCK_BYTES_MAX, BlockLayout, BlockName, block_layout
from stoker.executor.core import disk_index
from stoker.executor.core.disk_index import (
    BlockFileName,
    Reconciled,
    Record,
    Replay,
    encode_drop,
    encode_header,
    encode_hold,
    parse_file_name,
    read_header,
    reconcile,
    replay,
)
from stoker.executor.errors import DirectoryHeld, DirectoryRefused
from stoker.executor.store import file_bytes

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
LOCK, FORMAT, BOOT, INDEX, BLOCKS = "lock", "format", "boot", "index", "blocks"
RESERVE_BYTES_MAX = 16 * 1024 * 1024  # of the directory, for what is no block: a quota counts all of it
RESERVE_SHARE = 16  # but no more than one part in so many
_PARTIAL = ".partial"
_INDEX_BYTES_MAX = 256 * 1024 * 1024
_SMALL_BYTES_MAX = 4096
_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_FULL_TRIES_MAX = 16  # blocks that are given up at a start for room to write the index
_SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _reserve(fd: int, size: int) -> None:
    """Give a file its length, and its room where the file system knows how. :raises OSError: there is none."""
    while _libc.fallocate(fd, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            os.ftruncate(fd, size)
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def is_short_of_means(error: OSError) -> bool:
    """Return whether a file could not be opened for want of descriptors or memory: nothing is said of the file."""
    return error.errno in _SHORTAGES


class Disk:
    """The real disk. All calls raise OSError."""

    def create(self, path: str, size: int) -> int:
        """Return a descriptor of a new file of `size` zeros whose room is reserved, as far as the file system does that."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if size:
                _reserve(fd, size)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return fd

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view, offset)
            view, offset = view[count:], offset + count

    def sync(self, fd: int) -> None:
        """Make a file's bytes, and where they are, durable."""
        os.fdatasync(fd)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def probe(self, path: str) -> None:
        """Read a little of a file from the device itself, where the file system knows how: it is answered, or hangs."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:
                os.preadv(fd, [page], 0)
        finally:
            os.close(fd)

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


class Opened(NamedTuple):
    """A directory at a start. `unrecorded`: files to look into, with their data bytes; `index_fd` ends at `index_bytes`.

    `stuck`: files that are of no use and could not be removed; the index says so, and is to go on saying it. `given_up_count`:
    blocks that were given up for room to write the index.
    """

    lock_fd: int
    index_fd: int
    index_bytes: int
    held: tuple[Record, ...]
    unrecorded: tuple[tuple[BlockFileName, int], ...]
    serial_next: int
    lost_count: int
    damaged_count: int
    capacity_bytes: int
    stuck: tuple[BlockFileName, ...]
    given_up_count: int


def open_directory(directory: str, cluster: bytes, *, disk: Disk, boot_id: str, asked_bytes: int) -> Opened:
    """Take a directory over, or make a new one; reads its index and the names of its files, and no block.

    :raises DirectoryHeld: another keeper has it: try again in a while. :raises DirectoryRefused: it is not for this cluster,
      or not ours at all. :raises OSError: the disk does not do what it should.
    """
    if os.path.islink(directory) and not os.path.exists(directory):  # how an agent gives a volume
        raise DirectoryRefused(
            f"its volume's directory {os.readlink(directory)} is gone from this agent. Have Mesos' operator destroy the "
            "volume (DESTROY_VOLUMES): then the slot gets a new one"
        )
    os.makedirs(directory, mode=0o700, exist_ok=True)
    lock_fd = _lock(directory)
    try:
        _check_format(directory, cluster, disk)
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(directory, BLOCKS), 0o700)
        said = _read_index(directory, cluster)
        is_same_boot = bool(boot_id) and _read_small(os.path.join(directory, BOOT)) == boot_id.encode()
        names = [parse_file_name(name) for name in os.listdir(os.path.join(directory, BLOCKS))]
        files = [file for file in names if file is not None]
        found = reconcile(said, files, trusts_unrecorded=is_same_boot)
        unrecorded, unfit = _look_into(directory, cluster, found)
        stuck = [file for file in (*found.doomed, *unfit) if not _is_removed(disk, directory, file)]
        held = list(found.held)
        while True:
            try:
                index_fd, index_bytes = _begin_boot(directory, cluster, disk, boot_id, held, stuck)
                break
            except OSError as error:
                given_up = len(found.held) - len(held)
                if error.errno not in _FULL_ERRORS or not held or given_up >= _FULL_TRIES_MAX:
                    raise
                oldest = held.pop(0).file
                if not _is_removed(disk, directory, oldest):
                    stuck.append(oldest)
        seen = [file.serial for file in files] + list(said.held) + list(said.dropped)
        used = sum(file_bytes(record.data_bytes) for record in held)
        used += sum(file_bytes(data_bytes) for _, data_bytes in unrecorded)
        reserve = min(RESERVE_BYTES_MAX, asked_bytes // RESERVE_SHARE)
        there = used + disk.free_bytes(directory)
        return Opened(
            lock_fd,
            index_fd,
            index_bytes,
            tuple(held),
            unrecorded,
            max(seen, default=0) + 1,
            len(found.lost),
            said.bad_count,
            max(0, min(asked_bytes, there) - reserve),
            tuple(stuck),
            len(found.held) - len(held),
        )
    except BaseException:
        os.close(lock_fd)
        raise


def _is_removed(disk: Disk, directory: str, file: BlockFileName) -> bool:
    path = block_path(directory, file)
    try:
        disk.unlink(path)
    except OSError as error:
        log.error("%s cannot be removed: %s", path, error)
        return False
    return True


def _begin_boot(
    directory: str,
    cluster: bytes,
    disk: Disk,
    boot_id: str,
    held: Iterable[Record],
    dropped: Iterable[BlockFileName],
) -> tuple[int, int]:
    """Make durable what is held, and then that a keeper began in this boot; return as `write_index` does."""
    index_fd, index_bytes = write_index(directory, cluster, disk, held, dropped)
    try:
        replace_file(disk, os.path.join(directory, BOOT), boot_id.encode())
    except BaseException:
        os.close(index_fd)
        raise
    return index_fd, index_bytes


def block_path(directory: str, file: BlockFileName) -> str:
    return os.path.join(directory, BLOCKS, str(file))


def check_block_file(fd: int, cluster: bytes, name: BlockName, layout: BlockLayout) -> None:
    """:raises ValueError: `fd` is not the file of this block: its size or its header is another."""
    size = os.fstat(fd).st_size
    if size != layout.file_bytes:
        raise ValueError(f"the file has {size} bytes, not {layout.file_bytes}")
    found = index.read_header(fd, layout)
    if found != (cluster, name, layout.data_bytes):
        raise ValueError(f"its header says {found[1]} of {found[2]} bytes, cluster {found[0].hex()}")


def write_index(
    directory: str,
    cluster: bytes,
    disk: Disk,
    held: Iterable[Record],
    dropped: Iterable[BlockFileName] = (),
) -> tuple[int, int]:
    """Make an index of these records durable in place of the old one; return its descriptor and its length.

    :raises OSError: it could not be; the old one stands, or the new one does.
    """
    data = b"".join((encode_header(cluster), *map(encode_hold, held), *map(encode_drop, dropped)))
    return replace_file(disk, os.path.join(directory, INDEX), data, keeps_open=True), len(data)


def replace_file(disk: Disk, path: str, data: bytes, *, keeps_open: bool = False) -> int:
    """Make `data` the durable content of `path`, wholly or not at all; return its descriptor if it is to be kept open."""
    partial = path + _PARTIAL
    disk.unlink(partial)
    fd = disk.create(partial, 0)
    try:
        disk.write(fd, data, 0)
        disk.sync(fd)
        disk.rename(partial, path)
        disk.sync_directory(os.path.dirname(path))
    except BaseException:
        os.close(fd)
        raise
    if not keeps_open:
        os.close(fd)
        return -1
    return fd


def _lock(directory: str) -> int:
    """:raises DirectoryHeld: another process has the lock."""
    fd = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode(errors="replace")
        os.close(fd)
        raise DirectoryHeld(f"the directory {directory} is in use by another executor (pid {pid})") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_format(directory: str, cluster: bytes, disk: Disk) -> None:
    """:raises DirectoryRefused: the directory is another cluster's, of a newer format, or something else."""
    path = os.path.join(directory, FORMAT)
    text = _read_small(path)
    if not text:
        if os.path.exists(os.path.join(directory, BLOCKS)):
            raise DirectoryRefused(
                f"the directory {directory} has block files but does not say whose: it lacks its file {FORMAT!r}; "
                "give this executor another directory, or empty that one"
            )
        told = {"format": FORMAT_VERSION, "cluster": cluster.hex()}
        replace_file(disk, path, json.dumps(told).encode() + b"\n")
        return
    try:
        said = json.loads(text)
        version, owner = int(said["format"]), str(said["cluster"])
    except (ValueError, KeyError, TypeError) as error:
        raise DirectoryRefused(f"the file {path} cannot be understood ({error!r})") from None
    if version > FORMAT_VERSION:
        raise DirectoryRefused(
            f"the directory {directory} has format {version}, this program knows up to {FORMAT_VERSION}: "
            "a newer one wrote it; run that"
        )
    if owner != cluster.hex():
        raise DirectoryRefused(
            f"the directory {directory} has blocks of cluster {owner}, this executor is of cluster {cluster.hex()}: "
            "give it another directory, or empty that one"
        )


def _read_index(directory: str, cluster: bytes) -> Replay:
    """Return what the index says; nothing where there is none.

    :raises DirectoryRefused: it is another cluster's, or a newer program's.
    """
    try:
        with open(os.path.join(directory, INDEX), "rb") as file:
            data = file.read(_INDEX_BYTES_MAX)
    except FileNotFoundError:
        return replay(b"")
    said = replay(data)
    head = read_header(data)
    if head is None:
        return said._replace(bad_count=said.bad_count + 1)
    if head[0] > disk_index.FORMAT_VERSION:
        raise DirectoryRefused(
            f"the index in {directory} has format {head[0]}, this program knows up to {disk_index.FORMAT_VERSION}: "
            "a newer one wrote it; run that"
        )
    if head[1] != cluster:
        raise DirectoryRefused(
            f"the index in {directory} is of cluster {head[1].hex()}, this executor of {cluster.hex()}"
        )
    return said


def _look_into(
    directory: str, cluster: bytes, found: Reconciled
) -> tuple[tuple[tuple[BlockFileName, int], ...], list[BlockFileName]]:
    """Return the unrecorded files that are block files, with their data bytes; and the others."""
    good, unfit = [], []
    for file in found.unrecorded:
        data_bytes = _data_bytes(block_path(directory, file), cluster, file)
        if data_bytes:
            good.append((file, data_bytes))
        else:
            unfit.append(file)
    return tuple(good), unfit


def _data_bytes(path: str, cluster: bytes, file: BlockFileName) -> int:
    """Return the data bytes of a block's file; 0: it is not the file of this block.

    :raises OSError: there are no descriptors to find out with.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if is_short_of_means(error):
            raise
        return 0
    try:
        place = _layout_of(os.fstat(fd).st_size)
        if place is None:
            return 0
        data_bytes = index.read_header(fd, place)[2]
        if not 1 <= data_bytes <= BLOCK_BYTES_MAX:
            return 0
        check_block_file(fd, cluster, file.name, block_layout(data_bytes))
        return data_bytes
    except (OSError, ValueError):
        return 0
    finally:
        os.close(fd)


def _layout_of(file_bytes: int) -> BlockLayout | None:
    """Return a layout whose file has so many bytes; None: there is none.

    Some numbers of data bytes have files of one size. As each part of a layout grows with the data, their parts are where
    this one's are.
    """
    low, high = 1, min(file_bytes, BLOCK_BYTES_MAX)
    while low < high:
        middle = (low + high) // 2
        if block_layout(middle).file_bytes < file_bytes:
            low = middle + 1
        else:
            high = middle
    found = block_layout(low)
    return found if found.file_bytes == file_bytes else None


def _read_small(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_SMALL_BYTES_MAX)
    except FileNotFoundError:
        return b""
