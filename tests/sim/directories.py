"""The disks of simulated agents: the directories of persistent volumes, and what executors keep there.

Mesos makes and removes them. It holds that against the journal: nothing is made that was not planned, nothing removed that was not
doomed, and no reservation is left without its volume.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from stoker.framework.core.volumes import LABEL_CLUSTER, Volumes, VolumeState

Key = tuple[int, int]  # dataset id, generation

_PATH = re.compile(r"(?P<agent>.*)/volumes/roles/[^/]+/stoker-[0-9a-f]{8}-v(?P<volume>\d+)")


@dataclass
class Directory:
    """What is in a volume: indexes of blocks."""

    held: dict[Key, set[int]] = field(default_factory=dict)


class Directories:
    def __init__(
        self,
        *,
        promised: Callable[[], Volumes],
        was_planned: Callable[[int], bool],
        in_use: Callable[[], dict[int, str]],
    ) -> None:
        self.directories: dict[str, Directory] = {}
        self.made: Counter[int] = Counter()
        self.destroyed: list[int] = []
        self._promised, self._was_planned, self._in_use = promised, was_planned, in_use

    def make(self, path: str) -> None:
        if path not in self.directories:
            volume_id = volume_of(path)
            assert self._was_planned(volume_id), "a volume was made before it was journaled"
            assert not self.made[volume_id], f"volume {volume_id} is made again: a volume's id is used again"
            self.made[volume_id] += 1
            self.directories[path] = Directory()

    def remove(self, path: str) -> None:
        volume_id = volume_of(path)
        promised = self._promised().get(volume_id)
        assert promised is None or promised.state is VolumeState.DOOMED, f"volume {volume_id} is wanted"
        assert promised is not None or volume_id in self.destroyed, f"nobody doomed volume {volume_id}"
        assert volume_id not in self._in_use(), f"volume {volume_id} is in use"
        del self.directories[path]
        self.destroyed.append(volume_id)

    def wipe(self, work_dir: str) -> None:
        """Somebody removes all that an agent had."""
        for path in [path for path in self.directories if path.startswith(work_dir + "/")]:
            del self.directories[path]

    def check_settled(self, estates: Iterable[tuple[str, list[Any]]], in_use: dict[int, str]) -> None:
        """What is there is what is promised. `estates`: agent ids and their resources as messages."""
        promised = self._promised()
        there: dict[int, str] = {}
        for agent_id, resources in estates:
            for resource in resources:
                persistence = resource.get("disk", {}).get("persistence")
                if persistence is not None:
                    there[int(persistence["id"].rpartition("-v")[2])] = agent_id
        assert there == {v.volume_id: v.agent_id for v in promised.values()}, (there, dict(promised))
        assert all(v.state is VolumeState.READY for v in promised.values()), dict(promised)
        for volume_id, agent_id in in_use.items():
            assert there[volume_id] == agent_id, f"a task runs on volume {volume_id}, which is elsewhere"


def leaked(estates: Iterable[tuple[str, list[Any]]]) -> list[tuple[str, float]]:
    """Return what is reserved with our labels and holds no volume: (agent id, MiB) each."""
    found = []
    for agent_id, resources in estates:
        for resource in resources:
            labels = (resource.get("reservations") or [{}])[-1].get("labels", {}).get("labels", ())
            is_ours = any(label["key"] == LABEL_CLUSTER for label in labels)
            if is_ours and "persistence" not in resource.get("disk", {}):
                found.append((agent_id, float(resource["scalar"]["value"])))
    return found


def volume_of(path: str) -> int:
    match = _PATH.fullmatch(path)
    assert match is not None, path
    return int(match["volume"])
