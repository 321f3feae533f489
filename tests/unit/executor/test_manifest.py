"""The manifest as its readers see it: held against naive models over made-up datasets."""

from __future__ import annotations

import os
import pickle
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.executor.manifest import FileRow, Manifest, ManifestError, build, map_manifest, write_mapped
from support.manifests import CLUSTER, build_rows, file_row, map_built, mapped_rows, rows_of

MIB = 2**20

# Few letters, so that names are prefixes of one another, and '-' (0x2d), which sorts before '/' (0x2f).
COMPONENT = st.text(alphabet="ab-0é😀 .%", min_size=1, max_size=3).filter(lambda c: c not in (".", ".."))
PATH = st.lists(COMPONENT, min_size=1, max_size=4).map("/".join)
SIZE = st.one_of(
    st.sampled_from([0, 1, 63, 64, 65, 128 * 1024, 128 * 1024 + 1, MIB - 1, MIB, MIB + 1, 9 * MIB]),
    st.integers(0, 3 * MIB),
)


@st.composite
def datasets(draw: st.DrawFn) -> list[FileRow]:
    paths = draw(st.lists(PATH, unique=True, max_size=40))
    mtime = st.integers(-(2**63), 2**63 - 1)
    return [FileRow(p, draw(SIZE), draw(mtime), draw(st.binary(max_size=20))) for p in paths]


def sorted_rows(rows: list[FileRow]) -> list[FileRow]:
    return sorted(rows, key=lambda r: r.path.encode())


@given(datasets())
def test_rows_come_back_in_byte_order(rows: list[FileRow]) -> None:
    built = build_rows(rows)
    manifest = map_built(built)
    assert rows_of(manifest) == sorted_rows(rows)
    assert (manifest.digest, manifest.file_count) == (built.digest, built.files)
    assert (manifest.total_bytes, manifest.address_bytes) == (built.bytes, built.address_bytes)
    assert (manifest.block_bytes, manifest.block_count) == (built.block_bytes, built.block_count)
    assert manifest.pg_count == built.pg_count
    assert (manifest.cluster, manifest.dataset_id) == (CLUSTER, 7)
    assert (manifest.generation, manifest.version) == (1, 1)
    assert manifest.sizes.tolist() == [r.size for r in sorted_rows(rows)]


@given(datasets(), st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(rows: list[FileRow], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert build_rows(iter(shuffled)).root == build_rows(rows).root


@given(datasets())
def test_find_against_a_dict(rows: list[FileRow]) -> None:
    manifest = mapped_rows(rows)
    for row, expected in enumerate(sorted_rows(rows)):
        assert manifest.find(expected.path) == row
    known = {r.path for r in rows}
    others = (
        {p[:-1] for p in known} | {p + "x" for p in known} | {"", "\0", "a\0b", "\ud800", "a" * 5000} - known
    )
    others = {p for p in others if p not in known}
    assert all(manifest.find(path) == -1 for path in others)
    joined = "\0".join(r.path for r in sorted_rows(rows)[:2])
    assert len(rows) < 2 or manifest.find(joined) == -1


@given(datasets(), PATH)
def test_prefixes_against_a_naive_model(rows: list[FileRow], prefix: str) -> None:
    manifest = mapped_rows(rows)
    for name in ("", prefix, *(r.path for r in rows), *(r.path.rpartition("/")[0] for r in rows)):
        found = [i for start, stop in manifest.prefix_ranges(name) for i in range(start, stop)]
        under = [i for i, r in enumerate(sorted_rows(rows)) if not name or r.path.startswith(name + "/")]
        itself = [i for i, r in enumerate(sorted_rows(rows)) if r.path == name]
        assert found == itself + under
        assert manifest.is_directory(name) == (bool(under) or not name)
        assert list(range(*manifest.directory_range(name))) == under
        if name:
            assert [i for r in manifest.prefix_ranges(name + "/") for i in range(*r)] == under


@given(datasets())
def test_list_directory_against_a_naive_model(rows: list[FileRow]) -> None:
    manifest = mapped_rows(rows)
    directories = {""} | {r.path[:i] for r in rows for i, c in enumerate(r.path) if c == "/"}
    for directory in directories:
        skip = len(directory) + 1 if directory else 0
        children = set()
        for row, file in enumerate(sorted_rows(rows)):
            if not directory or file.path.startswith(directory + "/"):
                name, slash, _ = file.path[skip:].partition("/")
                children.add((name, bool(slash), -1 if slash else row))
        assert manifest.list_directory(directory) == sorted(children)
    assert manifest.list_directory("no such") == []


@given(datasets(), st.data())
def test_rows_between_against_a_naive_model(rows: list[FileRow], data: st.DataObject) -> None:
    manifest = mapped_rows(rows)
    edges = [0, 1, *(e for o, s in map(manifest.extent, range(len(rows))) for e in (o, o + s))]
    start = data.draw(st.sampled_from(edges))
    stop = data.draw(st.sampled_from(edges)) + data.draw(st.integers(-1, 1))
    expected = sorted(
        (offset, row)
        for row, (offset, size) in enumerate(map(manifest.extent, range(len(rows))))
        if size and max(offset, start) < min(offset + size, stop)
    )
    found = manifest.rows_between(start, stop)
    assert found.dtype == np.int64
    assert found.tolist() == [row for _, row in expected]


def blocks_of(manifest: Manifest, row: int) -> set[int]:
    offset, size = manifest.extent(row)
    return (
        set(range(offset // manifest.block_bytes, -(-(offset + size) // manifest.block_bytes)))
        if size
        else set()
    )


@given(datasets())
def test_block_arrays_against_a_naive_model(rows: list[FileRow]) -> None:
    manifest = mapped_rows(rows)
    file_bytes = [0] * manifest.block_count
    files = [0] * manifest.block_count
    for row in range(manifest.file_count):
        offset, size = manifest.extent(row)
        for block in blocks_of(manifest, row):
            start = block * manifest.block_bytes
            file_bytes[block] += min(offset + size, start + manifest.block_bytes) - max(offset, start)
        if manifest.block_count:
            files[min(offset // manifest.block_bytes, manifest.block_count - 1)] += 1
    assert manifest.block_file_bytes.tolist() == file_bytes
    assert manifest.block_file_count.tolist() == files
    lengths = [manifest.block_length(i) for i in range(manifest.block_count)]
    assert sum(lengths) == manifest.address_bytes
    assert all(0 < length <= manifest.block_bytes and length % 64 == 0 for length in lengths)


@given(datasets(), st.lists(st.tuples(st.booleans(), st.one_of(PATH, st.just(""))), max_size=5), st.data())
def test_select_against_a_naive_model(
    rows: list[FileRow], rules: list[tuple[bool, str]], data: st.DataObject
) -> None:
    manifest = mapped_rows(rows)
    if rows:
        rules = [*rules, (data.draw(st.booleans()), data.draw(st.sampled_from([r.path for r in rows])))]
    chosen = []
    for row, file in enumerate(sorted_rows(rows)):
        matching = [inc for inc, p in rules if not p or file.path == p or file.path.startswith(p + "/")]
        if matching and matching[-1]:
            chosen.append(row)
    selected = manifest.select(rules)
    blocks = {b for row in chosen for b in blocks_of(manifest, row)}
    bits = np.unpackbits(np.frombuffer(selected.blocks, dtype=np.uint8), bitorder="little")
    assert len(selected.blocks) == -(-manifest.block_count // 8)
    assert set(np.flatnonzero(bits).tolist()) == blocks
    assert selected.files == len(chosen)
    assert selected.bytes == sum(manifest.size(r) for r in chosen)
    assert manifest.blocks_of_rows(chosen).tolist() == sorted(blocks)
    assert [r for s in manifest.select_ranges(rules) for r in range(*s)] == chosen


def test_a_name_that_is_file_and_directory_with_a_name_between() -> None:
    manifest = mapped_rows([file_row("a/b"), file_row("a"), file_row("a-b"), file_row("a/c/d")])
    assert [manifest.path(r) for r in range(4)] == ["a", "a-b", "a/b", "a/c/d"]
    assert manifest.prefix_ranges("a") == [(0, 1), (2, 4)]
    assert manifest.list_directory("") == [("a", False, 0), ("a", True, -1), ("a-b", False, 1)]
    assert manifest.list_directory("a") == [("b", False, 2), ("c", True, -1)]
    assert manifest.select([(True, "a"), (False, "a/c")]).files == 2


def test_no_rows() -> None:
    manifest = mapped_rows([])
    assert (manifest.file_count, manifest.block_count, manifest.pg_count) == (0, 0, 1)
    assert manifest.find("a") == -1
    assert manifest.list_directory("") == []
    assert manifest.is_directory("")
    assert manifest.rows_between(0, 100).tolist() == []
    assert manifest.select([(True, "")]) == (b"", 0, 0)
    assert manifest.block_file_bytes.tolist() == manifest.block_file_count.tolist() == []


def test_only_empty_files_take_no_block() -> None:
    manifest = mapped_rows([file_row("a", 0), file_row("b", 0)])
    assert manifest.block_count == 0
    assert manifest.select([(True, "")]) == (b"", 0, 2)


@pytest.mark.parametrize("row", [-1, 2, 2**40])
def test_rows_outside_are_refused(row: int) -> None:
    manifest = mapped_rows([file_row("a"), file_row("b")])
    for call in (
        manifest.path,
        manifest.size,
        manifest.offset,
        manifest.extent,
        manifest.mtime_ns,
        manifest.token,
    ):
        with pytest.raises(IndexError, match="dataset with 2 files"):
            call(row)
    with pytest.raises(IndexError):
        manifest.block_length(row)


def test_etags_follow_the_file_not_the_version() -> None:
    first = mapped_rows([file_row("a", token=b'"abc"'), file_row("b"), FileRow("c", 5, 0, b"")])
    later = mapped_rows(
        [file_row("b"), FileRow("c", 5, 0, b""), file_row("d", mtime_ns=2)], version=2, previous=first
    )
    assert first.etag(0) == '"abc"'
    assert first.etag(1) == later.etag(later.find("b"))
    # `c` has no mark at all, so nobody can say that it is the same.
    assert first.etag(2) != later.etag(later.find("c"))
    assert len({later.etag(r) for r in range(3)}) == 3
    assert all(e[0] == e[-1] == '"' for e in map(later.etag, range(3)))


def test_buckets_filled_on_purpose_are_searched_in_order() -> None:
    # Names of one CRC-32: the CRC is affine, so flips that cancel can be combined at will.
    base, flips = colliding_flips()
    names = []
    for mask in range(64):
        name = bytearray(base)
        for bit, flip in enumerate(flips):
            if mask >> bit & 1:
                name = bytearray(x ^ y for x, y in zip(name, flip, strict=True))
        names.append(name.decode())
    assert len({zlib.crc32(n.encode()) for n in names}) == 1
    manifest = mapped_rows([file_row(n) for n in names])
    assert [manifest.find(name) for name in sorted(names)] == list(range(64))
    assert manifest.find("q" * len(base)) == -1


def colliding_flips() -> tuple[bytes, list[bytes]]:
    """Return text and six independent masks that change no CRC-32; each only toggles the low bit of some letters."""
    base = b"b" * 40  # 'b' ^ 1 == 'c'
    zero = zlib.crc32(bytes(40))
    basis: dict[int, tuple[int, int]] = {}  # leading bit -> (crc change, mask of toggled letters)
    flips = []
    for letter in range(40):
        change, mask = zlib.crc32(bytes(int(i == letter) for i in range(40))) ^ zero, 1 << letter
        while change and change.bit_length() in basis:
            other = basis[change.bit_length()]
            change, mask = change ^ other[0], mask ^ other[1]
        if change:
            basis[change.bit_length()] = (change, mask)
        else:
            flips.append(bytes(mask >> i & 1 for i in range(40)))
    return base, flips[:6]


def test_it_is_shared_by_forked_children() -> None:
    manifest = mapped_rows([file_row(f"{i:05d}") for i in range(1000)])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str([manifest.find("00500"), manifest.path(999)]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    assert os.read(reader, 100) == b"[500, '00999']"
    os.close(reader)


def test_it_is_read_by_many_threads() -> None:
    manifest = mapped_rows([file_row(f"{i:05d}") for i in range(2000)])
    wrong: list[int] = []

    def look() -> None:
        wrong.extend(i for i in range(2000) if manifest.find(f"{i:05d}") != i)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_is_not_pickled_and_not_written() -> None:
    manifest = mapped_rows([file_row("a")])
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(manifest)
    with pytest.raises(ValueError, match="read-only"):
        manifest.sizes[0] = 1


def test_mapping_by_descriptor_leaves_it_open(tmp_path) -> None:  # type: ignore[no-untyped-def]
    built = build_rows([file_row("a")])
    write_mapped(built.root, built.parts.__getitem__, str(tmp_path / "m"))
    descriptor = os.open(tmp_path / "m", os.O_RDONLY)
    manifest = map_manifest(descriptor)
    os.close(descriptor)
    os.unlink(tmp_path / "m")
    assert manifest.path(0) == "a"


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 2**32))
def test_many_rows_cost_less_than_two_hundred_bytes_each(seed: int) -> None:
    def listing():  # type: ignore[no-untyped-def]
        for i in range(20_000):
            mark = (i * 2654435761 + seed) % 2**32
            yield FileRow(
                f"train/class_{i // 100:04d}/image_{i:08d}.jpg", 20_000 + mark % 977, mark, b'"%032x"' % mark
            )

    built = build(listing(), cluster=CLUSTER, dataset_id=1, generation=1, version=1, slot_bytes=2**30)
    manifest = map_built(built)
    assert len(built.parts) > 2
    assert len(manifest._mapped) < 200 * 20_000
    assert manifest.find("train/class_0123/image_00012345.jpg") == 12_345


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/..",
        "../a",
        "a/./b",
        "a/../b",
        "a\0b",
        "\0",
        "x" * 4097,
        "\ud800",
        "/",
    ],
)
@pytest.mark.parametrize("others", [0, 3])
def test_bad_paths_are_refused_by_name(path: str, others: int) -> None:
    rows = (
        [file_row(f"m{i}") for i in range(others)]
        + [file_row(path)]
        + [file_row(f"z{i}") for i in range(others)]
    )
    with pytest.raises(ManifestError) as error:
        build_rows(rows)
    assert repr(path)[:50].rstrip("'") in str(error.value)


@pytest.mark.parametrize(
    "path", ["...", "..a", "a..", ".a/.b", "a/...", "x" * 4096, "é" * 2048, "a\\b", "a b", "\n"]
)
def test_odd_paths_are_allowed(path: str) -> None:
    manifest = mapped_rows([file_row("m"), file_row(path), file_row("z")])
    assert manifest.path(manifest.find(path)) == path


@pytest.mark.parametrize("distance", [0, 1, 9000])
def test_a_path_twice_is_refused_by_name(distance: int) -> None:
    rows = [file_row("twice/é")] + [file_row(f"{i:05d}") for i in range(distance)] + [file_row("twice/é")]
    with pytest.raises(ManifestError, match="'twice/é' was listed twice"):
        build_rows(rows)


@pytest.mark.parametrize(
    "row",
    [
        FileRow("bad", -1, 0, b""),
        FileRow("bad", 2**46 + 1, 0, b""),
        FileRow("bad", 0, 2**63, b""),
        FileRow("bad", 0, 0, bytes(257)),
    ],
)
def test_bad_numbers_are_refused_by_name(row: FileRow) -> None:
    with pytest.raises(ManifestError, match="'bad' has size"):
        build_rows([file_row("a"), row])


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(ManifestError, match="a dataset has at most"):
        build_rows([file_row(f"{i}", 2**46) for i in range(2**14 + 1)])
