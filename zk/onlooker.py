"""Looking at a journal without taking it: beside its living leader, or when the whole cluster is dead. Bytes only.

An `Onlooker` changes nothing, takes no lock and no part in an election, and bears that the journal goes on meanwhile: records
may be added, and old ones cut off once a newer snapshot holds them. Two places, one interface: a directory
(`LocalOnlooker`) and a path in ZooKeeper (`ZooKeeperOnlooker`).

What cannot be trusted is Corrupt, with the place and the record in the text. Whoever wants to hear of all damage, not
only the first, goes by the parts: every snapshot, the log, every blob.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from stoker.zk.codec import Term
from stoker.zk.errors import Corrupt
from stoker.zk.home import Batch, Snapshot


class Header(NamedTuple):
    """What a journal is, as of one moment. Records [first_index, next_index) are in its log; `parts` hold them.

    `part_name` is what those are (segment, znode). `members` are the living who have it open or want to lead it, as
    far as that can be seen; `torn_bytes` at its end were never acknowledged.
    """

    place: str
    term: Term
    snapshots: tuple[int, ...]
    first_index: int
    next_index: int
    parts: int
    part_name: str
    log_bytes: int
    torn_bytes: int
    members: tuple[str, ...]


class Onlooker(Protocol):
    """See the module. One thread at a time."""

    def header(self) -> Header:
        """:raises Unavailable: there is no journal, or no way to it. :raises Corrupt, TooNew, Denied: ..."""
        ...

    def snapshot(self, index: int | None = None) -> Snapshot | None:
        """Return the snapshot of `index`, or the newest (a local one that is damaged is passed over for the one before).

        None: there is no such one (any more). :raises Corrupt, TooNew: the one asked for is damaged, or no one is good.
        """
        ...

    def log(self, from_index: int = 0) -> Iterator[Batch]:
        """Yield what the log holds from record `from_index` on, or from the oldest where that is gone; up to the newest.

        Where the log is cut while it is read, beyond what was yielded, it goes on with the oldest there is then.

        :raises Corrupt, TooNew: damage, a gap, a record twice, an epoch out of order. What came before it was good.
        """
        ...

    def blob_digests(self) -> Sequence[str]: ...

    def get_blob(self, digest: str) -> bytes | None:
        """Return the blob, None: there is none. :raises Corrupt: the bytes have another digest."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


def is_empty(header: Header) -> bool:
    """Say whether nobody has ever written to the journal (somebody may have led it)."""
    return header.next_index == 0 and not header.snapshots and header.log_bytes == header.torn_bytes


def read_state(onlooker: Onlooker, from_index: int | None = None) -> Iterator[Snapshot | Batch]:
    """Yield what makes the state: the newest snapshot, if there is one, and all records after it.

    `from_index`: the caller has the state just before that record, and gets what came since. A snapshot may come later
    too, where the log was cut meanwhile beyond what had been read: begin again from it.

    :raises Corrupt, TooNew, Unavailable: as the onlooker; also where records are missing that no good snapshot holds.
    """
    index = from_index or 0
    snapshot = onlooker.snapshot() if from_index is None else None
    while True:
        if snapshot is not None:
            yield snapshot
            index = snapshot.next_index
        is_cut = False
        for batch in onlooker.log(index):
            is_cut = batch.first_index > index
            if is_cut:
                break  # the records between are in a newer snapshot
            yield batch
            index = batch.first_index + len(batch.records)
        if not is_cut and index >= max(onlooker.header().snapshots, default=0):
            return
        snapshot = onlooker.snapshot()
        if snapshot is None or snapshot.next_index <= index:
            raise Corrupt(
                f"{onlooker.header().place}: record {index} is missing, and no good snapshot holds it"
            )
