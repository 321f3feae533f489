"""Hot reads on the same host, beside plain unbuffered descriptors of the very same block files.

Two identical files differ up to two times by where their pages lie, so the same pages are the only fair peer.
"""

from __future__ import annotations

import io
import os
import pathlib
import random
import tempfile

import fsspec
from common import Result, add_and_load, cluster, compare, seconds

FILE_BYTES = 512 * 2**20
BUFFER_BYTES = 2**20
RANDOM_BYTES = 4096
RANDOM_READS = 20_000
SMALL_FILES = 4_000
SMALL_BYTES = 110_000
BATCH_FILES = 256
GIB = 2**30


def run() -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="stoker-bench-data-") as directory:
        root = pathlib.Path(directory)
        _make_files(root)
        with cluster(mem_bytes=2 * GIB) as client:
            add_and_load(client, "hot", str(root))
            os.environ["STOKER_URL"] = client.url
            return [*_large(client), *_small(client, root)]


def _make_files(root: pathlib.Path) -> None:
    (root / "a-first.bin").write_bytes(
        random.Random(0).randbytes(13 * 2**20)
    )  # so that the next starts inside a block
    with open(root / "b-large.bin", "wb") as file:
        for seed in range(FILE_BYTES // 2**24):
            file.write(random.Random(seed).randbytes(2**24))
    for number in range(SMALL_FILES):
        path = root / "small" / f"{number % 40:02d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(number).randbytes(SMALL_BYTES))


def _large(client) -> list[Result]:
    filesystem = fsspec.filesystem("stoker", skip_instance_cache=True)
    pieces = _pieces(client)
    buffer = bytearray(BUFFER_BYTES)
    plain = [io.FileIO(os.dup(descriptor)) for descriptor, _, _ in pieces]

    def ours_sequential() -> float:
        with filesystem.open("hot/b-large.bin") as file:
            return FILE_BYTES / seconds(lambda: _drain(file, buffer)) / GIB

    def plain_sequential() -> float:
        return (
            FILE_BYTES
            / seconds(
                lambda: [_drain_part(f, b, n, buffer) for f, (_, b, n) in zip(plain, pieces, strict=True)]
            )
            / GIB
        )

    offsets = [random.Random(1).randrange(FILE_BYTES - RANDOM_BYTES) for _ in range(RANDOM_READS)]
    places = [_place(pieces, offset) for offset in offsets]
    raw = filesystem.open("hot/b-large.bin", block_size=0)

    def ours_seek() -> float:
        def loop() -> None:
            for offset in offsets:
                raw.seek(offset)
                raw.read(RANDOM_BYTES)

        return RANDOM_READS / seconds(loop) / 1000

    def plain_seek() -> float:
        def loop() -> None:
            for number, offset in places:
                plain[number].seek(offset)
                plain[number].read(RANDOM_BYTES)

        return RANDOM_READS / seconds(loop) / 1000

    def ours_at() -> float:
        return (
            RANDOM_READS / seconds(lambda: [raw.read_at(offset, RANDOM_BYTES) for offset in offsets]) / 1000
        )

    descriptors = [(pieces[n][0], offset) for n, offset in places]

    def plain_at() -> float:
        return (
            RANDOM_READS
            / seconds(lambda: [os.pread(fd, RANDOM_BYTES, offset) for fd, offset in descriptors])
            / 1000
        )

    return [
        compare(
            "hot sequential readinto 1 MiB",
            peer="plain descriptors of the same blocks",
            unit="GiB/s",
            bar=">= 0.95",
            ours=ours_sequential,
            theirs=plain_sequential,
        ),
        compare(
            "hot random 4 KiB, seek+read",
            peer="the same calls on plain files",
            unit="k/s",
            bar=">= 0.8",
            ours=ours_seek,
            theirs=plain_seek,
        ),
        compare(
            "hot random 4 KiB, read_at",
            peer="os.pread",
            unit="k/s",
            bar=">= 0.85",
            ours=ours_at,
            theirs=plain_at,
        ),
    ]


def _pieces(client) -> list[tuple[int, int, int]]:
    """(descriptor, begin in it, bytes) of each block of the large file, in order, once all descriptors are held."""
    dataset = client.dataset("hot")
    with dataset.open("b-large.bin") as file:
        _drain(file, bytearray(BUFFER_BYTES))
    offset, size = dataset.extent("b-large.bin")
    held, pieces = dataset._reader.descriptors, []
    while size:
        index, begin = divmod(offset, dataset.block_bytes)
        length = min(size, dataset.block_bytes - begin)
        pieces.append((held[index], begin, length))
        offset, size = offset + length, size - length
    return pieces


def _place(pieces: list[tuple[int, int, int]], offset: int) -> tuple[int, int]:
    for number, (_, begin, length) in enumerate(pieces):
        if offset < length:
            return number, begin + offset
        offset -= length
    raise AssertionError("beyond the file")


def _drain(file, buffer: bytearray) -> None:
    while file.readinto(buffer):
        pass


def _drain_part(file: io.FileIO, begin: int, length: int, buffer: bytearray) -> None:
    file.seek(begin)
    view = memoryview(buffer)
    while length:
        length -= file.readinto(view[:length] if length < len(view) else view)


def _small(client, root: pathlib.Path) -> list[Result]:
    filesystem = fsspec.filesystem("stoker", skip_instance_cache=True)
    dataset = client.dataset("hot")
    rows = [row for row, path in enumerate(dataset.paths) if path.startswith("small/")]
    random.Random(2).shuffle(rows)
    batches = [rows[i : i + BATCH_FILES] for i in range(0, len(rows), BATCH_FILES)]
    names = [[f"hot/{dataset.paths[row]}" for row in batch] for batch in batches]
    with tempfile.TemporaryDirectory(prefix="stoker-bench-plain-", dir="/dev/shm") as directory:
        plain = [[_plain_copy(root, directory, dataset.paths[row]) for row in batch] for batch in batches]
        buffer = bytearray(BATCH_FILES * SMALL_BYTES)

        def ours_cat() -> float:
            return len(rows) / seconds(lambda: [filesystem.cat(batch) for batch in names]) / 1000

        def ours_many() -> float:
            return (
                len(rows)
                / seconds(lambda: [dataset.read_many(batch, out=buffer) for batch in batches])
                / 1000
            )

        def plain_open() -> float:
            return len(rows) / seconds(lambda: [[_read(path) for path in batch] for batch in plain]) / 1000

        return [
            compare(
                "hot small files (110 KB), cat x 256",
                peer="open().read() of plain tmpfs files",
                unit="k files/s",
                bar=">= 1.0",
                ours=ours_cat,
                theirs=plain_open,
            ),
            compare(
                "hot small files, read_many into one buffer",
                peer="open().read() of plain tmpfs files",
                unit="k files/s",
                bar=">= 2.0",
                ours=ours_many,
                theirs=plain_open,
            ),
        ]


def _plain_copy(root: pathlib.Path, directory: str, path: str) -> str:
    copy = pathlib.Path(directory) / path
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes((root / path).read_bytes())
    return str(copy)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
