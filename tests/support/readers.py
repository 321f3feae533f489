"""Map-style data sets and loops that run in worker processes: importable by name, so that spawn finds them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import fsspec


class OpenedFiles:
    """A map-style data set that opens `stoker://` paths, as a user of PyTorch would write it."""

    def __init__(self, name: str, paths: Sequence[str]) -> None:
        self.name = name
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[str, str]:
        path = self.paths[row]
        with fsspec.open(f"stoker://{self.name}/{path}") as file:
            return path, hashlib.sha256(file.read()).hexdigest()


def read_digest(item: tuple[OpenedFiles, int]) -> tuple[str, str]:
    dataset, row = item
    return dataset[row]


def read_ranges(name: str, root: str, sizes: dict[str, int], *, seed: int, count: int) -> tuple[int, str]:
    """Read `count` random ranges and compare each with the local file; return (ranges read, "" or what differed)."""
    chance = random.Random(seed)
    filesystem = fsspec.filesystem("stoker")
    paths = sorted(sizes)
    for done in range(count):
        path = chance.choice(paths)
        start = chance.randrange(max(1, sizes[path]))
        stop = min(sizes[path], start + chance.randrange(1, 300_000))
        got = filesystem.cat_file(f"{name}/{path}", start, stop)
        with open(f"{root}/{path}", "rb") as file:
            file.seek(start)
            if got != file.read(stop - start):
                return done, f"{path}[{start}:{stop}] differs"
    return count, ""
