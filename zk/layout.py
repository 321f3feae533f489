"""Where what lies under a journal's path in ZooKeeper.

PATH/schema                            that the path is ours, and its format (codec)
PATH/epoch                             the term (codec); the znode's version is the fence of all writes
PATH/election/n_<uuid>-<sequence>      one for each candidate, ephemeral; data: what it calls itself
PATH/log/<index>                       one for each batch, named by its first record; data: the batch (codec)
PATH/snapshot                          the pointer (codec) to the newest snapshot; empty: none
PATH/snapshots/<name>/<chunk>          data of the snapshot that the pointer names; others are garbage
PATH/blobs/<sha256>/<chunk>            data: the blob's length once all its chunks are there, empty before
"""

from __future__ import annotations

import re

INDEX_DIGITS = 20
CHUNK_DIGITS = 6
CHUNK_BYTES = 256 * 1024  # a request must stay below ZooKeeper's 1 MiB, and well below it

_INDEX = re.compile(rf"[0-9]{{{INDEX_DIGITS}}}")


class Layout:
    """The paths of one journal. `root` begins with '/' and does not end with it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.schema = f"{root}/schema"
        self.epoch = f"{root}/epoch"
        self.election = f"{root}/election"
        self.log = f"{root}/log"
        self.pointer = f"{root}/snapshot"
        self.snapshots = f"{root}/snapshots"
        self.blobs = f"{root}/blobs"
        self.folders = (
            self.election,
            self.log,
            self.pointer,
            self.snapshots,
            self.blobs,
        )  # empty in a new journal

    def candidate(self, node: str) -> str:
        return f"{self.election}/{node}"

    def batch(self, first_index: int) -> str:
        return f"{self.log}/{first_index:0{INDEX_DIGITS}d}"

    def snapshot(self, name: str) -> str:
        return f"{self.snapshots}/{name}"

    def snapshot_chunk(self, name: str, number: int) -> str:
        return f"{self.snapshots}/{name}/{chunk_name(number)}"

    def blob(self, digest: str) -> str:
        return f"{self.blobs}/{digest}"

    def blob_chunk(self, digest: str, number: int) -> str:
        return f"{self.blobs}/{digest}/{chunk_name(number)}"


def read_index(name: str) -> int | None:
    """Return the index that a batch's znode is named by, None if this is no such name."""
    return int(name) if _INDEX.fullmatch(name) else None


def chunk_name(number: int) -> str:
    return f"{number:0{CHUNK_DIGITS}d}"


def chunk_count(size: int) -> int:
    return -(-size // CHUNK_BYTES)


def chunks(data: bytes) -> list[bytes]:
    """Return `data` in pieces of at most CHUNK_BYTES; none of nothing."""
    return [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
