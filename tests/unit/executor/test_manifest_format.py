"""Root, parts, bundle and mapped file: bytes that stand for ever, and bytes that must be refused."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.executor import manifest_format, manifest_mapped
from stoker.executor.manifest import (
    BuiltManifest,
    FileRow,
    ManifestError,
    bundle,
    map_manifest,
    open_bundle,
    part_digests,
    read_root,
    unbundle,
    write_mapped,
)
from stoker.executor.manifest_format import Columns, PartEntry, Root, digest_of, encode_part, encode_root
from support.manifests import CLUSTER, build_rows, file_row, map_built, mapped_rows, rows_of

MIB = 2**20
GOLDEN_ROWS = [
    FileRow("a", 5, 1_700_000_000_000_000_001, b'"etag"'),
    FileRow("a-b", 0, -1, b""),
    FileRow("a/é", 2 * MIB, 7, b"\x00\xff"),
    FileRow("b", 130_000, 0, b"t"),
]
# Written by format version 1. They must read the same for ever; only a new format version may add others.
GOLDEN_ROOT = (
    "U1RLUk1GUgEBAAAAgAAAAAABAgMEBQYHCAkKCwwNDg8HAAAAAAAAAAEAAAAAAAAAAQAAAAAAAAAAABAAAAAAAAQAAAAAAAAA"
    "1fshAAAAAAAADCIAAAAAAA0AAAAAAAAACQAAAAAAAAACAAAAAQAAAAEAAAAAAAAAAAAAAAAAAAAADCIAAAAAAIm97+hiO+PQ"
    "ZMCPiLTC+ykZvqCnCML70T9SmJuWgtHdfQAAAAQAAAANAAAACQAAAA=="
)
GOLDEN_PART = (
    "U1RLUk1GUAEBAAEABAAAAA0AAAAJAAAAAAAAAAAAAAB4AUtkSNRNYkjUP7ySIYmBlYHhAgMDw28GBgVGII0FHACK8WMRhwgx"
    "/uP4yfCf4b/WVYb/ZicZ/v9jZPg/J5nh//QMhv/iLxj+szEwgc1VSi1JTFdi+F8CAOsDGcM="
)


def test_the_golden_manifest_reads_as_it_was_written(tmp_path: Path) -> None:
    root, part = base64.b64decode(GOLDEN_ROOT), base64.b64decode(GOLDEN_PART)
    write_mapped(root, {hashlib.sha256(part).hexdigest(): part}.__getitem__, str(tmp_path / "m"))
    manifest = map_manifest(tmp_path / "m")
    assert rows_of(manifest) == GOLDEN_ROWS
    assert manifest.offsets.tolist() == [0, 64, 4096, 2_101_248]
    assert (manifest.block_bytes, manifest.block_count, manifest.pg_count) == (MIB, 3, 2)
    assert (manifest.address_bytes, manifest.total_bytes) == (2_231_296, 2_227_157)


def test_the_golden_manifest_is_still_written() -> None:
    built = build_rows(GOLDEN_ROWS)
    (part,) = built.parts.values()
    golden = base64.b64decode(GOLDEN_PART)
    # What zlib makes of equal bytes may differ from machine to machine.
    assert part[:32] == golden[:32]
    assert zlib.decompress(part[32:]) == zlib.decompress(golden[32:])
    assert built.root[:128] == base64.b64decode(GOLDEN_ROOT)[:128]


def refuse(built: BuiltManifest, tmp_path: Path, match: str) -> None:
    """Assert that writing `built` raises ManifestError and leaves nothing behind."""
    with pytest.raises(ManifestError, match=match):
        write_mapped(built.root, built.parts.__getitem__, str(tmp_path / "m"))
    assert os.listdir(tmp_path) == []


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_changed_byte_of_a_root_or_part_passes(data: st.DataObject) -> None:
    built = build_rows(GOLDEN_ROWS)
    (digest,) = built.parts
    in_root = data.draw(st.booleans())
    blob = bytearray(built.root if in_root else built.parts[digest])
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    changed = built._replace(root=bytes(blob)) if in_root else built._replace(parts={digest: bytes(blob)})
    try:
        manifest = map_built(changed)
    except (ManifestError, KeyError):
        return
    # A root vouches for itself only by its digest: what it says of names and versions cannot be told from the truth.
    assert in_root
    assert manifest.digest != built.digest
    assert rows_of(manifest) == GOLDEN_ROWS


@given(st.binary(max_size=400))
def test_random_bytes_are_no_root_and_no_bundle(blob: bytes) -> None:
    with pytest.raises(ManifestError):
        read_root(blob)
    with pytest.raises(ManifestError):
        unbundle(io.BytesIO(blob).read)
    with pytest.raises(ManifestError):
        read_root(manifest_format.ROOT_MAGIC + blob)


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 40, -1])
def test_a_truncated_part_is_refused(cut: int, tmp_path: Path) -> None:
    built = build_rows(GOLDEN_ROWS)
    parts = {digest: blob[:cut] for digest, blob in built.parts.items()}
    refuse(built._replace(parts=parts), tmp_path, "damaged")


def test_newer_formats_are_refused_and_say_so(tmp_path: Path) -> None:
    built = build_rows(GOLDEN_ROWS)
    for at, match in ((8, "version 2.*upgrade"), (10, "unknown flags.*upgrade")):
        root = bytearray(built.root)
        root[at] = 2
        refuse(built._replace(root=bytes(root)), tmp_path, match)
    (part,) = built.parts.values()
    for at, match in ((8, "version 2.*upgrade"), (10, "unknown codec.*upgrade")):
        changed = bytearray(part)
        changed[at] = 2
        refuse(forge(bytes(changed), built), tmp_path, match)


def forge(part: bytes, built: BuiltManifest, **fields: object) -> BuiltManifest:
    """Return `built` with another part that its root points to: what a liar with the right digests would send."""
    root = read_root(built.root)
    (entry,) = root.parts
    entry = entry._replace(digest=digest_of(part), stored_bytes=len(part))
    blob = encode_root(root._replace(parts=(entry,), **fields))
    return built._replace(root=blob, digest=digest_of(blob), parts={entry.digest: part})


def forge_rows(
    rows: list[tuple[str, int, int]], *, address_bytes: int = 16 * MIB, ends: tuple[int, ...] | None = None
) -> BuiltManifest:
    """Return a manifest, right in all digests and sums, of (path, size, offset) rows as given."""
    columns = Columns(
        np.frombuffer(
            b"".join(p.encode("utf-8", "surrogateescape") + b"\0" for p, _, _ in rows), dtype=np.uint8
        ),
        np.cumsum([0, *(len(p.encode("utf-8", "surrogateescape")) + 1 for p, _, _ in rows)]),
        np.array([s for _, s, _ in rows], dtype=np.int64),
        np.array([o for _, _, o in rows], dtype=np.int64),
        np.zeros(len(rows), dtype=np.int64),
        np.zeros(0, dtype=np.uint8),
        np.zeros(len(rows) + 1, dtype=np.int64),
    )
    part = encode_part(columns, 0, len(rows))
    entry = PartEntry(digest_of(part), len(part), len(rows), len(columns.paths), 0)
    root = Root(
        CLUSTER,
        dataset_id=7,
        generation=1,
        version=1,
        block_bytes=MIB,
        file_count=len(rows),
        total_bytes=sum(s for _, s, _ in rows),
        address_bytes=address_bytes,
        path_bytes=len(columns.paths),
        token_bytes=0,
        pg_count=1,
        ends=(address_bytes,) if ends is None else ends,
        parts=(entry,),
    )
    blob = encode_root(root)
    return BuiltManifest(blob, digest_of(blob), {entry.digest: part}, len(rows), 0, 0, MIB, 0, 1)


def test_a_forged_manifest_that_keeps_the_rules_passes() -> None:
    manifest = map_built(forge_rows([("a", 10, 64), ("b", 10, 0), ("c", MIB, 4096)]))
    assert manifest.rows_between(0, 100).tolist() == [1, 0]


@pytest.mark.parametrize(
    "path", ["/a", "a/", "a//b", ".", "..", "../a", "a/../b", "x" * 4097, "", "\udcff", "\udced\udca0\udc80"]
)
def test_forged_paths_are_refused(path: str, tmp_path: Path) -> None:
    refuse(forge_rows([(path, 1, 0)]), tmp_path, "damaged: row 0 has the path")


@pytest.mark.parametrize("paths", [("b", "a"), ("a", "a"), ("a/b", "a-b")])
def test_forged_orders_are_refused(paths: tuple[str, str], tmp_path: Path) -> None:
    refuse(forge_rows([(paths[0], 1, 0), (paths[1], 1, 64)]), tmp_path, "out of order")


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        (1, 1),
        (1, 32),
        (1, -64),
        (1, -(2**63)),
        (1, 2**62),
        (1, 16 * MIB),
        (64, 16 * MIB),
        (0, 16 * MIB + 64),
        (2 * MIB, 15 * MIB),
        (MIB, 64),
        (128 * 1024, MIB - 64),
        (2**46, 0),
    ],
)
def test_forged_addresses_are_refused(size: int, offset: int, tmp_path: Path) -> None:
    built = forge_rows([("a", size, offset)])
    refuse(built, tmp_path, "forbidden address|more bytes than addresses")


def test_forged_extents_that_share_bytes_are_refused(tmp_path: Path) -> None:
    refuse(forge_rows([("a", 300, 0), ("b", 300, 256)]), tmp_path, "share an address")
    refuse(forge_rows([("a", 3 * MIB, 0), ("b", 1, 2 * MIB)]), tmp_path, "share an address")


def test_files_lie_between_two_ends(tmp_path: Path) -> None:
    ends = (MIB + 128, 3 * MIB)
    assert map_built(forge_rows([("a", 128, MIB)], address_bytes=3 * MIB, ends=ends)).block_length(1) == 128
    refuse(forge_rows([("a", 129, MIB)], address_bytes=3 * MIB, ends=ends), tmp_path, "forbidden address")
    refuse(forge_rows([("a", 1, MIB + 128)], address_bytes=3 * MIB, ends=ends), tmp_path, "forbidden address")
    refuse(
        forge_rows([("a", MIB, MIB + 4096)], address_bytes=3 * MIB, ends=ends), tmp_path, "forbidden address"
    )


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"block_bytes": 3 * MIB}, "block bytes"),
        ({"block_bytes": 0}, "block bytes"),
        ({"block_bytes": 2**32}, "block bytes"),
        ({"pg_count": 0}, "PGs"),
        ({"pg_count": 3}, "PGs"),
        ({"pg_count": 2**19}, "PGs"),
        ({"file_count": 5}, "rows do not add up"),
        ({"file_count": 2**32}, "rows"),
        ({"path_bytes": 1}, "path bytes do not add up"),
        ({"token_bytes": 1}, "token bytes do not add up"),
        ({"address_bytes": 63}, "address bytes"),
        ({"address_bytes": 64}, "more bytes than addresses"),
        ({"total_bytes": 1}, "sizes do not add up"),
        ({"ends": ()}, "last end"),
        ({"ends": (64, 2_231_296 + 64)}, "last end"),
        ({"ends": (64, 128, 2_231_296)}, "two ends lie in one block"),
        ({"ends": (2 * MIB, MIB, 2_231_296)}, "ends"),
        ({"ends": (MIB, 2_231_296)}, "forbidden address"),
    ],
)
def test_forged_roots_are_refused(fields: dict[str, object], match: str, tmp_path: Path) -> None:
    built = build_rows(GOLDEN_ROWS)
    root = encode_root(read_root(built.root)._replace(**fields))
    refuse(built._replace(root=root), tmp_path, match)


@pytest.mark.parametrize(
    "change", [{"rows": 2**31}, {"path_bytes": 2**31}, {"token_bytes": 2**31}, {"stored_bytes": 2**31}]
)
def test_forged_parts_above_the_limits_are_refused(change: dict[str, int], tmp_path: Path) -> None:
    root = read_root(build_rows(GOLDEN_ROWS).root)
    entry = root.parts[0]._replace(**change)
    totals = {"rows": "file_count", "path_bytes": "path_bytes", "token_bytes": "token_bytes"}
    fields = {totals[k]: v for k, v in change.items() if k in totals}
    blob = encode_root(root._replace(parts=(entry,), **fields))
    refuse(build_rows(GOLDEN_ROWS)._replace(root=blob), tmp_path, "above the limits")


def test_a_part_that_inflates_to_more_is_refused(tmp_path: Path) -> None:
    built = build_rows(GOLDEN_ROWS)
    (part,) = built.parts.values()
    raw = zlib.decompress(part[32:])
    refuse(forge(part[:32] + zlib.compress(raw + b"x" * 10_000_000), built), tmp_path, "does not inflate to")
    refuse(forge(part[:32] + zlib.compress(raw[:-1]), built), tmp_path, "does not inflate to")
    refuse(forge(part + b"x", built), tmp_path, "does not inflate to")
    refuse(forge(part[:-1], built), tmp_path, "does not inflate to")
    refuse(forge(part[:32] + b"garbage", built), tmp_path, "does not inflate")


def test_a_part_whose_columns_lie_is_refused(tmp_path: Path) -> None:
    built = build_rows(GOLDEN_ROWS)
    (part,) = built.parts.values()
    raw = zlib.decompress(part[32:])
    for changed in (raw.replace(b"a-b\0", b"a-bb"), raw.replace(b"a-b\0", b"\0-b\0"), raw[:-20] + bytes(20)):
        if len(changed) == len(raw):
            refuse(forge(part[:32] + zlib.compress(changed), built), tmp_path, "damaged")


def test_what_get_part_raises_is_passed_on_and_nothing_stays(tmp_path: Path) -> None:
    built = build_rows(GOLDEN_ROWS)

    def get_part(digest: str) -> bytes:
        raise ConnectionError(digest)

    with pytest.raises(ConnectionError):
        write_mapped(built.root, get_part, str(tmp_path / "m"))
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    old = build_rows([file_row("old")])
    write_mapped(old.root, old.parts.__getitem__, str(tmp_path / "m"))
    with pytest.raises(ManifestError):
        write_mapped(b"", old.parts.__getitem__, str(tmp_path / "m"))
    assert map_manifest(tmp_path / "m").path(0) == "old"


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_a_damaged_mapped_header_is_refused(seed: int) -> None:
    data = bytearray(map_built(build_rows(GOLDEN_ROWS))._mapped[:])
    at = seed % manifest_mapped.HEADER_BYTES
    data[at] ^= 1 + (seed >> 16) % 255
    with pytest.raises(ManifestError):
        manifest_mapped.read_header(bytes(data[: manifest_mapped.HEADER_BYTES]), file_bytes=len(data))


@pytest.mark.parametrize("size", [0, 1, 259, 260, 1000, -1])
def test_a_truncated_mapped_file_is_refused(size: int, tmp_path: Path) -> None:
    data = map_built(build_rows(GOLDEN_ROWS))._mapped[:]
    (tmp_path / "m").write_bytes(data[:size])
    with pytest.raises(ManifestError):
        map_manifest(tmp_path / "m")


def test_bundles_go_and_come_in_any_pieces() -> None:
    built = build_rows(file_row(f"{i:05d}") for i in range(12_000))
    assert len(built.parts) > 1
    body = b"".join(bundle(built.root, built.parts))
    assert body == b"".join(bundle(built.root, built.parts.__getitem__))
    assert struct.unpack_from("<II", body) == (1 + len(built.parts), len(built.root))
    stream = io.BytesIO(body)
    assert unbundle(lambda n: stream.read(min(n, 1000))) == (built.root, built.parts)


def test_a_bundle_is_written_without_being_held(tmp_path: Path) -> None:
    rows = [file_row(f"{i:05d}") for i in range(12_000)]
    built = build_rows(rows)
    root, get_part = open_bundle(io.BytesIO(b"".join(bundle(built.root, built.parts))).read)
    write_mapped(root, get_part, str(tmp_path / "m"))
    assert rows_of(map_manifest(tmp_path / "m")) == rows


def test_bad_bundles_are_refused() -> None:
    built = build_rows(file_row(f"{i:05d}") for i in range(12_000))
    body = b"".join(bundle(built.root, built.parts))
    digests = part_digests(built.root)
    for cut in (0, 3, 4, 100, len(body) - 1):
        with pytest.raises(ManifestError, match="the bundle ends after"):
            unbundle(io.BytesIO(body[:cut]).read)
    with pytest.raises(ManifestError, match="holds 9 blobs"):
        unbundle(io.BytesIO(struct.pack("<I", 9) + body[4:]).read)
    with pytest.raises(ManifestError, match="at most"):
        unbundle(io.BytesIO(struct.pack("<II", 9, 2**32 - 1)).read)
    swapped = dict(zip(digests, reversed(built.parts.values()), strict=True))
    with pytest.raises(ManifestError, match="another digest"):
        unbundle(io.BytesIO(b"".join(bundle(built.root, swapped))).read)
    _, get_part = open_bundle(io.BytesIO(body).read)
    with pytest.raises(ManifestError, match="out of the bundle's order"):
        get_part(digests[1])


def test_wide_starts_are_read_as_narrow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    place = manifest_mapped._place_sections

    def place_wide(blob: bytes, root: Root) -> manifest_mapped.MappedHeader:
        return place(blob, root._replace(path_bytes=2**32, token_bytes=2**32))

    monkeypatch.setattr(manifest_mapped, "_place_sections", place_wide)
    manifest = mapped_rows(GOLDEN_ROWS)
    assert rows_of(manifest) == GOLDEN_ROWS
    assert [manifest.find(r.path) for r in GOLDEN_ROWS] == [0, 1, 2, 3]
    assert manifest.list_directory("a") == [("é", False, 2)]
