"""Content-addressed blobs in ZooKeeper, in chunks; writing is the leader's, and fenced like all its writes.

A blob's node gets the blob's length as its data when all chunks are there; before that there is no blob.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable
from typing import Any

from kazoo.exceptions import NoNodeError

from stoker.zk.errors import Corrupt, TooLarge
from stoker.zk.journal import BLOB_BYTES_MAX
from stoker.zk.layout import chunk_count, chunks
from stoker.zk.session import AnswerLost, Operation, Session, getting, listing

BLOBS_BYTES_MAX = 64 * 1024 * 1024  # all blobs together
_READS_AHEAD_MAX = 64
_DIGEST = re.compile(r"[0-9a-f]{64}")

Write = Callable[..., None]  # does operations under the fence, or raises


class ZooKeeperBlobs:
    """See the module. `put` and `delete` take `write`, which adds the fence's check to each multi."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._layout = session.layout
        self._sizes: dict[str, int] | None = None  # of all blobs, once a leader needs them

    def put(self, data: bytes, write: Write) -> str:
        """See Journal.put_blob. :raises TooLarge: this blob, or all together, above the limits."""
        if len(data) > BLOB_BYTES_MAX:
            raise TooLarge(f"a blob of {len(data)} bytes; at most {BLOB_BYTES_MAX} are allowed")
        digest = hashlib.sha256(data).hexdigest()
        if self.get_undamaged(digest) is not None:
            return digest
        sizes = self._all_sizes()
        total = sum(sizes.values()) - sizes.get(digest, 0) + len(data)
        if total > BLOBS_BYTES_MAX:
            raise TooLarge(
                f"a blob of {len(data)} bytes would make {total} bytes of all blobs in ZooKeeper; "
                f"at most {BLOBS_BYTES_MAX} are allowed"
            )
        self._delete_node(digest, write)  # what an interrupted one left, or what is damaged
        node = self._layout.blob(digest)
        pieces = chunks(data)
        write(
            ("create", (node, b"")),
            *self._chunk(digest, 0, pieces[:1]),
            *_whole(node, data, len(pieces) <= 1),
        )
        for number, piece in enumerate(pieces[1:], 1):
            write(*self._chunk(digest, number, [piece]), *_whole(node, data, number == len(pieces) - 1))
        sizes[digest] = len(data)
        return digest

    def _chunk(self, digest: str, number: int, pieces: list[bytes]) -> list[Operation]:
        return [("create", (self._layout.blob_chunk(digest, number), piece)) for piece in pieces]

    def get(self, digest: str) -> bytes | None:
        """See Journal.get_blob."""
        if not _DIGEST.fullmatch(digest):
            return None
        size = self._read_size(digest)
        if size is None:
            return None
        try:
            data = self._read_chunks(digest, size)
        except NoNodeError as error:
            if self._read_size(digest) is None:
                return None  # deleted while we read
            raise Corrupt(f"{self._layout.blob(digest)} is not whole") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise Corrupt(f"{self._layout.blob(digest)} is damaged: its bytes have another digest")
        return data

    def get_undamaged(self, digest: str) -> bytes | None:
        """As `get`, but None for a damaged one."""
        try:
            return self.get(digest)
        except Corrupt:
            return None

    def delete(self, digest: str, write: Write) -> None:
        """See Journal.delete_blob."""
        if not _DIGEST.fullmatch(digest):
            return
        self._delete_node(digest, write)
        if self._sizes is not None:
            self._sizes.pop(digest, None)

    def digests(self) -> list[str]:
        """See Journal.blob_digests; those that are not whole are among them, to be deleted."""
        names = self._session.names_in(self._layout.blobs)
        return sorted(name for name in names if _DIGEST.fullmatch(name))

    def _delete_node(self, digest: str, write: Write) -> None:
        path = self._layout.blob(digest)
        try:
            names = sorted(self._session.ask(listing(path)))
        except NoNodeError:
            return
        # First of all it stops being a blob.
        operations: list[Operation] = [("set_data", (path, b""))]
        operations += [("delete", (f"{path}/{name}",)) for name in names] + [("delete", (path,))]
        write(*operations)

    def _read_size(self, digest: str) -> int | None:
        try:
            data, _ = self._session.ask(getting(self._layout.blob(digest)))
        except NoNodeError:
            return None
        return _size(data)

    def _read_chunks(self, digest: str, size: int) -> bytes:
        found = []
        for number in range(chunk_count(size)):
            path = self._layout.blob_chunk(digest, number)
            data, _ = self._session.ask(getting(path))
            found.append(data)
        return b"".join(found)

    def _all_sizes(self) -> dict[str, int]:
        if self._sizes is None:
            sizes: dict[str, int] = {}
            begun: deque[tuple[str, Any]] = deque()
            for digest in self.digests():
                begun.append((digest, self._begin_size(digest)))
                if len(begun) >= _READS_AHEAD_MAX:
                    self._finish_size(*begun.popleft(), sizes)
            for digest, pending in begun:
                self._finish_size(digest, pending, sizes)
            self._sizes = sizes
        return self._sizes

    def _begin_size(self, digest: str) -> Any:
        return self._session.begin(getting(self._layout.blob(digest)))

    def _finish_size(self, digest: str, pending: Any, sizes: dict[str, int]) -> None:
        try:
            sizes[digest] = _size(self._session.finish(pending)[0]) or 0
        except AnswerLost:
            self._session.wait_connected()
            sizes[digest] = self._read_size(digest) or 0
        except NoNodeError:
            return


def check_total(total_bytes: int) -> None:
    """Look whether blobs of that many bytes may lie where none is. :raises TooLarge: they may not."""
    if total_bytes > BLOBS_BYTES_MAX:
        raise TooLarge(
            f"blobs of {total_bytes} bytes in all; at most {BLOBS_BYTES_MAX} are allowed in ZooKeeper (a local journal "
            "has no such limit): nothing was changed"
        )


def _size(data: bytes) -> int | None:
    return int(data) if data.isdigit() else None


def _whole(node: str, data: bytes, is_last: bool) -> list[Operation]:
    return [("set_data", (node, b"%d" % len(data)))] if is_last else []
