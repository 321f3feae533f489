"""Load (under store on a local file system, no listing) beside `cp -r` of the same files to another directory of tmpfs."""

from __future__ import annotations

import pathlib
import random
import shutil
import subprocess
import tempfile

from common import Result, add_and_load, cluster, compare, seconds

SHAPES = {"large files (4 x 256 MB)": (4, 256 * 10**6), "small files (20,000 x 20 KB)": (20_000, 20_000)}
ROUNDS = 3
GIB = 2**30


def run() -> list[Result]:
    return [_shape(name, *shape) for name, shape in SHAPES.items()]


def _shape(name: str, count: int, size: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="stoker-bench-data-") as directory:
        root = pathlib.Path(directory) / "source"
        _make_files(root, count, size)
        total = count * size
        with cluster(mem_bytes=2 * GIB) as client:

            def ours() -> float:
                took = add_and_load(client, "loaded", str(root))
                client.delete_dataset("loaded")
                return total / took / 2**20

            def theirs() -> float:
                target = tempfile.mkdtemp(prefix="stoker-bench-copy-", dir="/dev/shm")
                try:
                    return (
                        total
                        / seconds(lambda: subprocess.run(["cp", "-r", str(root), target], check=True))
                        / 2**20
                    )
                finally:
                    shutil.rmtree(target)

            return compare(
                f"load, {name}",
                peer="cp -r to tmpfs",
                unit="MiB/s",
                bar=">= 0.9",
                ours=ours,
                theirs=theirs,
                rounds=ROUNDS,
            )


def _make_files(root: pathlib.Path, count: int, size: int) -> None:
    chunk = random.Random(count).randbytes(min(size, 2**22))
    for number in range(count):
        path = root / f"{number % 100:02d}" / f"{number:06d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for start in range(0, size, len(chunk)):
                file.write(chunk[: min(len(chunk), size - start)])
