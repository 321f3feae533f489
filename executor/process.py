"""What every process of an executor does first: die with its parent, have room for descriptors, log to stderr."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the process that started this one ends; exit now if it has ended already.

    The channel's end of file says the same; this is for a process that does not look at its channel just then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if parent_pid and os.getppid() != parent_pid:
        os._exit(1)


def raise_descriptor_limit() -> int:
    """Raise this process' limit of open files as far as it may; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def start_logging(name: str) -> None:
    """Log to stderr, which Mesos keeps in the sandbox, one line an event."""
    level = os.environ.get("STOKER_LOG_LEVEL", "INFO").upper()
    logging.basicConfig(
        stream=sys.stderr,
        level=level if level in logging.getLevelNamesMapping() else "INFO",
        format=f"%(asctime)s %(levelname).1s {name}[%(process)d] %(name)s: %(message)s",
    )


def boot_id(path: str = "/proc/sys/kernel/random/boot_id") -> str:
    """Return what tells one start of this machine from another; empty: the machine does not say."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
