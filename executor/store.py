"""Block files of the MEM tier: memfds, sealed once full.

Nothing of them stays after SIGKILL, no mount bounds them, and their memory counts where Mesos gave it. A file cannot grow
or shrink from its birth on; a sealed one cannot be written by anybody who was passed its descriptor. The seal is the one
against *future* writes (Linux 5.1): no block is ever mapped writable, so it says the same as the older one, which the kernel
refuses, after a wait, as long as bytes of the file stand in a slow reader's socket (sendfile lends its pages). What is kept and what
must go is not decided here (stoker.executor.core.cache, .admission): this module makes files. An SSD tier makes the same files in
a directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Protocol

from stoker.executor.block import BlockName, block_layout, encode_header

F_SEAL_FUTURE_WRITE = 0x0010  # the module fcntl names it from Python 3.12 on


class Tier(Protocol):
    """Makes block files; whoever is given a descriptor owns it."""

    def create(self, name: BlockName, data_bytes: int) -> int:
        """Return the descriptor of a new block's file: all zeros but for its header. :raises OSError: no room."""
        ...

    def seal(self, fd: int) -> bool:
        """Make a full block's file read-only for everybody and for ever; False: not now, ask again. Idempotent."""
        ...


class MemTier:
    """The tier of memfds of one cluster."""

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
