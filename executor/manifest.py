"""The manifest: the immutable file table of one dataset version. This is the door; the rooms are

- `manifest_format`: root, parts and bundle, byte by byte, for ever;
- `manifest_build`: from a listing to root and parts, the address rule, refresh;
- `manifest_mapped`: from root and parts to the one file that processes share;
- `manifest_reader`: that file, read.

Nothing here opens a socket or knows an under store.
"""

from __future__ import annotations

from stoker.executor.manifest_build import BuiltManifest, build
from stoker.executor.manifest_format import (
    PATH_BYTES_MAX,
    PATH_RULE,
    TOKEN_BYTES_MAX,
    FileRow,
    ManifestError,
    Root,
    bundle,
    digest_of,
    open_bundle,
    part_digests,
    read_root,
    unbundle,
)
from stoker.executor.manifest_mapped import write_mapped
from stoker.executor.manifest_reader import DirectoryEntry, Manifest, Selected, map_manifest

__all__ = [
    "PATH_BYTES_MAX",
    "PATH_RULE",
    "TOKEN_BYTES_MAX",
    "BuiltManifest",
    "DirectoryEntry",
    "FileRow",
    "Manifest",
    "ManifestError",
    "Root",
    "Selected",
    "build",
    "bundle",
    "digest_of",
    "map_manifest",
    "open_bundle",
    "part_digests",
    "read_root",
    "unbundle",
    "write_mapped",
]
