"""What a tier is to the keeper, and the MEM tier: memfds, sealed once full.

Nothing of them stays after SIGKILL, no mount bounds them, and their memory counts where Mesos gave it. A file cannot grow
or shrink from its birth on; a sealed one cannot be written by anybody who was passed its descriptor. The seal is the one
against *future* writes (Linux 5.1): no block is ever mapped writable, so it says the same as the older one, which the kernel
refuses, after a wait, as long as bytes of the file stand in a slow reader's socket (sendfile lends its pages). What is kept and what
must go is not decided here (stoker.executor.core.cache, .admission): this module makes files. The SSD tier
(stoker.executor.disk_tier) makes the same files in a directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from stoker.executor import index
from stoker.executor.block import BlockLayout, BlockName, block_layout, encode_header
from stoker.executor.core.extents import Range

F_SEAL_FUTURE_WRITE = 0x0010  # the module fcntl names it from Python 3.12 on


class BlockFile(Protocol):
    """The file of one holding. Calls that touch the file raise OSError where the disk does not do what it should."""

    @property
    def name(self) -> str:
        """By which the data server opens it; empty: it is passed a descriptor."""
        ...

    def watch(self, on_made: Callable[[], None], on_broken: Callable[[str], None]) -> None:
        """Have `on_made` called once the file is there, maybe at once; `on_broken` when it is of no more use, and why."""
        ...

    def is_ready(self, then: Callable[[], None]) -> bool:
        """Return whether `open` may be called, and all that was asked of the file is done; else `then` is called when it is.

        Of a file that is forgotten, or broken, it may be called without that.
        """
        ...

    def open(self) -> int:
        """Return a descriptor to write to. It stays the tier's, and is good until anything else of the tier is called."""
        ...

    def mark_valid(self, ranges: Sequence[Range]) -> None:
        """Note in the file's index that these bytes are valid, soon and in order."""
        ...

    def mark_known(self, pages: Sequence[Range], *, known: bool = True) -> None:
        """Note in the file's index that the checksums of these pages are there, or that they are not."""
        ...

    def seal(self, version: int, cached_bytes: int, done: Callable[[str], None]) -> bool:
        """Make a block that is full, from this dataset version on, read-only or durable, as the tier promises it.

        False: not yet. `done` is called when there is news: with nothing, to ask again; or why it cannot be. Idempotent.
        :raises OSError: it can never be, as was found out before.
        """
        ...

    def unseal(self) -> None:
        """It is written to again: what `seal` began counts no more."""
        ...

    def forget(self, *, is_damaged: bool = False) -> None:
        """Nobody may find it any more, also not after a restart; if it is damaged, after nothing at all. Idempotent."""
        ...

    def discard(self, on_gone: Callable[[], None]) -> None:
        """Remove a forgotten file that nobody uses; `on_gone` is called once its room is free, maybe at once."""
        ...


class Tier(Protocol):
    """Makes block files."""

    @property
    def is_stuck(self) -> bool:
        """Whether what the tier is made of does not answer: nothing is begun with it."""
        ...

    def create_file(self, name: BlockName, data_bytes: int) -> BlockFile | None:
        """Return a new block's file: all zeros but for its header; None: the tier can make none just now."""
        ...

    def tick(self) -> None:
        """Try again what had to wait; call it now and then."""
        ...

    def note_error(self, text: str) -> None:
        """Count an error of a file of this tier; it is told, and no file is made for a while."""
        ...


class MemTier:
    """The tier of memfds of one cluster.

    `create` returns the descriptor of a new block's file, which is the caller's; `seal` makes a full one read-only for
    everybody and for ever, or says False: not now, ask again.
    """

    is_stuck = False

    def __init__(self, cluster: bytes) -> None:
        assert len(cluster) == 16
        self._cluster = cluster

    def create(self, name: BlockName, data_bytes: int) -> int:
        layout = block_layout(data_bytes)
        label = f"stoker-{name.dataset_id}.{name.generation}.{name.block_index}"
        fd = os.memfd_create(label, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, layout.file_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            os.pwrite(fd, encode_header(self._cluster, name, data_bytes), layout.trailer_offset)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def seal(self, fd: int) -> bool:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL:
            return True
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return _seal_on_old_kernel(fd)
        return True

    def create_file(self, name: BlockName, data_bytes: int) -> MemFile:
        return MemFile(self, self.create(name, data_bytes), block_layout(data_bytes))

    def tick(self) -> None:
        pass

    def note_error(self, text: str) -> None:
        raise OSError(
            f"the MEM tier: {text}"
        )  # the machine has no memory: the executor ends, and is launched anew


class NoTier:
    """The SSD tier of an executor that has none."""

    is_stuck = False

    def tick(self) -> None:
        pass

    def create_file(self, name: BlockName, data_bytes: int) -> None:
        return None

    def note_error(self, text: str) -> None:
        raise AssertionError(text)


class MemFile:
    """A memfd; owns `fd`."""

    __slots__ = ("_fd", "_layout", "_tier", "name")

    def __init__(self, tier: MemTier, fd: int, layout: BlockLayout) -> None:
        self.name = ""
        self._tier = tier
        self._fd = fd
        self._layout = layout

    def watch(self, on_made: Callable[[], None], on_broken: Callable[[str], None]) -> None:
        on_made()

    def is_ready(self, then: Callable[[], None]) -> bool:
        return True

    def open(self) -> int:
        return self._fd

    def mark_valid(self, ranges: Sequence[Range]) -> None:
        index.mark_valid(self._fd, self._layout, ranges)

    def mark_known(self, pages: Sequence[Range], *, known: bool = True) -> None:
        index.mark_known(self._fd, self._layout, pages, known=known)

    def seal(self, version: int, cached_bytes: int, done: Callable[[str], None]) -> bool:
        return self._tier.seal(self._fd)

    def unseal(self) -> None:
        pass

    def forget(self, *, is_damaged: bool = False) -> None:
        pass

    def discard(self, on_gone: Callable[[], None]) -> None:
        os.close(self._fd)
        on_gone()


def _seal_on_old_kernel(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def file_bytes(data_bytes: int) -> int:
    """Return what a block of `data_bytes` takes of a tier: its whole file, in pages of the machine."""
    return -(-block_layout(data_bytes).file_bytes // 4096) * 4096
