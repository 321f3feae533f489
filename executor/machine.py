"""How much memory the MEM tier may really take: what was asked, bounded by what Mesos gave and what the machine has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil

PROCESSES_BYTES = 192 * 1024 * 1024  # what keeper, data server and fillers need beside the tier
CGROUP_ROOT = "/sys/fs/cgroup"
_UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63 for "none"


def tier_bytes(
    asked_bytes: int, *, mesos_bytes: int | None, available_bytes: int, cgroup_bytes: int | None
) -> int:
    """Return the tier's bytes, at least 0.

    `mesos_bytes` and `cgroup_bytes` are for the whole executor, so its processes come off them first.

    >>> tier_bytes(10 << 30, mesos_bytes=(10 << 30) + (256 << 20), available_bytes=2 << 30, cgroup_bytes=None) >> 20
    1856
    """
    bounds = [asked_bytes, available_bytes - PROCESSES_BYTES]
    bounds += [bound - PROCESSES_BYTES for bound in (mesos_bytes, cgroup_bytes) if bound is not None]
    return max(0, min(bounds))


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
