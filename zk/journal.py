"""The journal: ordered, fenced records, and the blobs that they point to. One interface, two homes.

The journal knows bytes, indexes and epochs; what a record means is its user's business. `LocalJournal` (a directory) and
the ZooKeeper journal pass one conformance suite.

Rule of use: `lead()` once, then `append` batches one at a time; any JournalError from `append` ends the leadership: the
caller throws its in-memory state away, closes, and starts again. A batch is durable when `append` returns, wholly or
not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

RECORD_BYTES_MAX = 128 * 1024  # one record; a batch of records must fit a 512 KiB ZooKeeper request
BATCH_BYTES_MAX = 256 * 1024
SNAPSHOT_BYTES_MAX = 2**30
BLOB_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Recovered:
    """What `lead` found. Replay `snapshot` (state just before `snapshot_index`; None: empty), then `batches` in order.

    `epoch` is this leadership's: above every epoch before it. `batches` yields (index of the first, records), at least one
    each, without gaps from `snapshot_index`; it must be consumed before the first append. `level` is the journal's format level. `resumed`: the
    caller's own state goes on where it is, with the records from the index that it asked for; there is no snapshot.
    """

    epoch: int
    level: int
    snapshot_index: int
    snapshot: bytes | None
    batches: Iterator[tuple[int, list[bytes]]]
    resumed: bool = False


class Journal(Protocol):
    """See the module. All calls may block on I/O; none is safe to make from two threads at once."""

    def lead(self, from_index: int = 0) -> Recovered:
        """Take the journal: bump and fence the epoch, read what is there.

        `from_index`: the caller has the state just before that record already (a follower has). Where the records from
        there on are all still there, they are all that is given (`Recovered.resumed`, `snapshot_index` == `from_index`).

        :raises Locked, Corrupt, TooNew, Unavailable: and nothing was changed.
        """
        ...

    def check(self) -> None:
        """Say whether this leadership may still act: to be asked before every action and answer. Cheap, no I/O.

        :raises Fenced, Unavailable: its time is over.
        """
        ...

    @property
    def wants_snapshot(self) -> bool:
        """Say whether the log has grown so far that a snapshot should be written soon; at four times that `append` may wait."""
        ...

    def append(self, first_index: int, records: Sequence[bytes]) -> None:
        """Make `records` durable at `first_index`, `first_index` + 1, ...; all or none.

        :raises TooLarge: a record > RECORD_BYTES_MAX or a batch > BATCH_BYTES_MAX; nothing was sent.
        :raises Fenced, Unavailable: see there; no further call but `close`.
        """
        ...

    def write_snapshot(self, index: int, data: bytes) -> None:
        """Store `data` as the state just before record `index`, then forget records below it. Safe to interrupt."""
        ...

    def put_blob(self, data: bytes) -> str:
        """Store `data` durably under its hex SHA-256 and return that; idempotent. :raises TooLarge, Unavailable: ..."""
        ...

    def get_blob(self, digest: str) -> bytes | None:
        """Return the blob, or None; :raises Corrupt: the stored bytes do not have this digest."""
        ...

    def delete_blob(self, digest: str) -> None:
        """Forget a blob; unknown digests are no error."""
        ...

    def blob_digests(self) -> list[str]:
        """Return the digests of all stored blobs, sorted. :raises Unavailable: ..."""
        ...

    def audit(self) -> str:
        """Return what somebody else deleted of the log, "" if nothing: told until a snapshot has taken its place.

        Neither this leader nor its followers miss it: they hold what it said. :raises Corrupt, Unavailable: ...
        """
        ...

    def close(self) -> None:
        """Release the journal; idempotent."""
        ...
