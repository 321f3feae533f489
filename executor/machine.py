"""How the memory is shared out: the MEM tier gets what was asked, bounded by what Mesos gave and what the machine has.

Beside the tier live the executor's processes, the *fill buffers* (bytes of under stores and peers on their way into blocks) and
the *scratch* (blocks that are read through and not kept). All are in the overhead that Mesos is asked for on top of the tier;
where less was given, it is the tier that gets less. How many callers the data server takes follows from what is left.

    given  =  tier  +  scratch  +  keeper and server  +  fillers  x  (their own memory  +  jobs  x  a job's buffers)
              +  connections  x  what one takes  +  blocks of the SSD tier  x  what is remembered of one  +  rest

The pages of the SSD tier's files in the page cache are the system's, which takes them back as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import psutil

from stoker.executor.block import disk_memory_bytes
from stoker.executor.core.filling import FILLER_JOBS_MAX
from stoker.executor.under_stores.base import PIECE_BYTES_MAX

KEEPER_BYTES = 40 * 1024 * 1024  # keeper and data server: 37 MiB of pages of their own, measured
CONNECTION_BYTES = 11 * 1024  # of the data server, one that is idle: measured
CONNECTIONS_MIN = 512  # even where the tier gets less for it
CONNECTIONS_MAX = 4_096
FILLER_BYTES = 56 * 1024 * 1024  # one, with its libraries: 36 MiB for HTTP, 56 MiB for S3, measured
FILL_JOB_BYTES_MIN = (
    2 * PIECE_BYTES_MAX
)  # a piece comes while another is written; or one that a library copies
FILL_JOB_BYTES_MAX = 16 * 1024 * 1024  # more makes nothing faster
SCRATCH_BYTES_MAX = 32 * 1024 * 1024
SCRATCH_BYTES_MIN = 8 * 1024 * 1024
CGROUP_ROOT = "/sys/fs/cgroup"
_UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63 for "none"


class Memory(NamedTuple):
    """Bytes for blocks, and for the buffers of one fill, and a number of connections; all, never more than was given."""

    tier_bytes: int
    scratch_bytes: int
    fill_job_bytes: int
    connections_max: int


def processes_bytes(
    filler_count: int,
    fill_job_bytes: int = FILL_JOB_BYTES_MIN,
    *,
    connections: int = CONNECTIONS_MIN,
    disk_bytes: int = 0,
) -> int:
    """Return what keeper, data server and fillers take beside the blocks, all buffers full and the SSD tier too."""
    fillers = filler_count * (FILLER_BYTES + FILLER_JOBS_MAX * fill_job_bytes)
    return KEEPER_BYTES + connections * CONNECTION_BYTES + fillers + disk_memory_bytes(disk_bytes)


def share_memory(
    asked_bytes: int,
    *,
    filler_count: int,
    mesos_bytes: int | None,
    available_bytes: int,
    cgroup_bytes: int | None,
    disk_bytes: int = 0,
) -> Memory:
    """Return the tier's bytes, at most `asked_bytes`, the scratch's, those of each fill's buffers, and how many connections
    there is memory for; tier and scratch at least 0 each. What is left over beside a tier as asked goes to connections, and
    then to the fills, a piece a step.

    The other arguments bound the whole executor, so its processes come off them first.

    >>> given = {"available_bytes": 8 << 30, "cgroup_bytes": None, "filler_count": 2}
    >>> share_memory(1 << 30, mesos_bytes=(1 << 30) + (256 << 20), **given)
    Memory(tier_bytes=1073741824, scratch_bytes=33554432, fill_job_bytes=8388608, connections_max=744)
    >>> share_memory(1 << 30, mesos_bytes=1 << 30, **given).tier_bytes >> 20
    770
    """
    given = min(bound for bound in (available_bytes, mesos_bytes, cgroup_bytes) if bound is not None)
    room = max(0, given - processes_bytes(filler_count, disk_bytes=disk_bytes))
    tier = min(asked_bytes, room)
    scratch = min(SCRATCH_BYTES_MAX, max(SCRATCH_BYTES_MIN, tier // 16), room // 2)
    tier = min(tier, room - scratch)
    left = room - tier - scratch
    connections = min(CONNECTIONS_MAX, CONNECTIONS_MIN + left // CONNECTION_BYTES)
    left -= (connections - CONNECTIONS_MIN) * CONNECTION_BYTES
    more = left // (filler_count * FILLER_JOBS_MAX) // PIECE_BYTES_MAX * PIECE_BYTES_MAX
    return Memory(tier, scratch, min(FILL_JOB_BYTES_MIN + more, FILL_JOB_BYTES_MAX), connections)


def available_bytes() -> int:
    """Return what the machine could give now without swapping."""
    return int(psutil.virtual_memory().available)


def cgroup_bytes(root: str = CGROUP_ROOT, own: str = "/proc/self/cgroup") -> int | None:
    """Return the smallest memory limit of this process' control groups; None: there is none."""
    limits = []
    try:
        with open(own) as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            limits += _limits(root, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(f"{root}/memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def _limits(root: str, path: str, name: str) -> list[int]:
    """Return the limits from `path` up to `root`; inside a container the path may not be visible."""
    found = []
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts), -1, -1):
        try:
            with open("/".join([root, *parts[:depth], name])) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            found.append(int(text))
    return found


def mesos_mem_bytes(*holders: Mapping[str, Any]) -> int | None:
    """Return the `mem` that the given ExecutorInfo and TaskInfos hold together; None: they name none."""
    megabytes = [
        resource["scalar"]["value"]
        for holder in holders
        for resource in holder.get("resources") or ()
        if resource.get("name") == "mem"
    ]
    return int(sum(megabytes) * 1024 * 1024) if megabytes else None
