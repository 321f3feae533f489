"""Files for tests, made from a seed, so that every process can tell what their bytes must be."""

from __future__ import annotations

import hashlib
import pathlib
import random


def content(seed: int, size: int) -> bytes:
    """Return `size` bytes that depend on `seed` and on nothing else."""
    return random.Random(seed).randbytes(size)


def make_files(
    root: pathlib.Path, count: int, *, size_min: int, size_max: int, seed: int = 0
) -> dict[str, int]:
    """Write `count` files below `root` and return path -> size; file i's bytes are `content(seed + i, size)`."""
    sizes = random.Random(seed)
    made = {}
    for i in range(count):
        path = root / f"d{i % 7}" / f"file-{i:05d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = sizes.randint(size_min, size_max)
        path.write_bytes(content(seed + i, size))
        made[str(path.relative_to(root))] = size
    return made


def digests(root: pathlib.Path) -> dict[str, str]:
    """Return path -> SHA-256 of every file below `root`."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }
