"""Content-addressed blobs in a directory: `ab/abcdef...`, each file named by the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
import os
import re

from stoker.zk.disk import PARTIAL_SUFFIX, Disk
from stoker.zk.errors import Corrupt, TooLarge
from stoker.zk.journal import BLOB_BYTES_MAX

_DIGEST = re.compile(r"[0-9a-f]{64}")


class LocalBlobs:
    """See the module. All calls raise OSError where the disk refuses."""

    def __init__(self, directory: str, disk: Disk) -> None:
        self._directory = directory
        self._disk = disk

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its digest; a damaged copy is replaced.

        :raises TooLarge: above BLOB_BYTES_MAX.
        """
        if len(data) > BLOB_BYTES_MAX:
            raise TooLarge(f"a blob of {len(data)} bytes; at most {BLOB_BYTES_MAX} are allowed")
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if self._read(path) != data:
            self._disk.make_directory(os.path.dirname(path))
            self._disk.replace_file(path, data)
        return digest

    def get(self, digest: str) -> bytes | None:
        """Return the blob, None if there is none (or `digest` is no digest).

        :raises Corrupt: what is stored has another digest.
        """
        data = self._read(self._path(digest)) if _DIGEST.fullmatch(digest) else None
        if data is not None and hashlib.sha256(data).hexdigest() != digest:
            raise Corrupt(f"{self._path(digest)} is damaged: its bytes have another digest")
        return data

    def delete(self, digest: str) -> None:
        """Forget a blob; one that is not there is no error."""
        if not _DIGEST.fullmatch(digest) or not os.path.exists(self._path(digest)):
            return
        self._disk.unlink(self._path(digest))

    def digests(self) -> list[str]:
        """Return what is stored, sorted."""
        found = (name for _, _, names in os.walk(self._directory, onerror=_raise) for name in names)
        return sorted(name for name in found if _DIGEST.fullmatch(name))

    def discard_partial(self) -> None:
        """Take away what an interrupted `put` left."""
        for folder, _, names in os.walk(self._directory):
            for name in names:
                if name.endswith(PARTIAL_SUFFIX):
                    self._disk.unlink(os.path.join(folder, name))

    def _path(self, digest: str) -> str:
        return os.path.join(self._directory, digest[:2], digest)

    def _read(self, path: str) -> bytes | None:
        try:
            with open(path, "rb") as file:
                return file.read(BLOB_BYTES_MAX + 1)
        except FileNotFoundError:
            return None


def _raise(error: OSError) -> None:
    raise error
