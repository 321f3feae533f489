"""Manifests for tests: built, written and mapped in one call."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable

from stoker.executor.manifest import BuiltManifest, FileRow, Manifest, build, map_manifest, write_mapped

CLUSTER = bytes(range(16))
SLOT_BYTES = 2**30


def build_rows(
    rows: Iterable[FileRow], *, version: int = 1, generation: int = 1, previous: Manifest | None = None
) -> BuiltManifest:
    return build(
        rows,
        cluster=CLUSTER,
        dataset_id=7,
        generation=generation,
        version=version,
        slot_bytes=SLOT_BYTES,
        previous=previous,
    )


def map_built(built: BuiltManifest) -> Manifest:
    """Return the manifest, mapped from a file that is already unlinked."""
    descriptor, path = tempfile.mkstemp()
    os.close(descriptor)
    try:
        write_mapped(built.root, built.parts.__getitem__, path)
        return map_manifest(path)
    finally:
        os.unlink(path)


def mapped_rows(rows: Iterable[FileRow], *, version: int = 1, previous: Manifest | None = None) -> Manifest:
    return map_built(build_rows(rows, version=version, previous=previous))


def file_row(path: str, size: int = 10, *, mtime_ns: int = 1, token: bytes = b"t") -> FileRow:
    return FileRow(path, size, mtime_ns, token)


def rows_of(manifest: Manifest) -> list[FileRow]:
    return [
        FileRow(manifest.path(r), manifest.size(r), manifest.mtime_ns(r), manifest.token(r))
        for r in range(manifest.file_count)
    ]
