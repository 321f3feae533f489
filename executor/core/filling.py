"""What of a block is valid, on its way, refused, or still to be asked for; and what a miss asks for.

Theory of operation. Every byte of a block that some file of the dataset's version owns is *needed*. A needed range is valid, or
flying (a job fetches it), or *changed* (final: the under store has other bytes now), or *refused* (the under store did
not give it; to be tried again after a while), or it is missing. A job is made of missing ranges
only, so no range is fetched twice at once: a second reader of it waits for the first one's job.

A block is full when all that is needed is valid, and settled when nothing more can be fetched now.

Padding counts as needed in a dataset's first version, where it is surely padding. Later versions may have holes where a changed
file of an earlier one was; a hole is then needed by nobody and never marked valid, so that a reader of the earlier version
is not served zeros.

Pure: arrays and numbers; times are milliseconds given by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stoker.executor.block import GRANULE_BYTES
from stoker.executor.core.extents import Extents, Range, subtract

FILLER_JOBS_MAX = 4  # of one filler at a time
MISS_UNIT_BYTES = 4 * 1024 * 1024  # a miss fetches the whole file up to here, else the range aligned to this
MISS_JOB_BYTES_MAX = 8 * 1024 * 1024  # of one job for readers, so that each of them is answered soon
WANTED_JOB_BYTES_MAX = 16 * 1024 * 1024  # a reader may have to wait for the end of one
RETRIES_MAX = 5  # of what the under store refused; then the block is settled without it, and jobs are over,
RETRY_MS_MIN = 500
RETRY_MS_MAX = 15_000
RETRY_SETTLED_MS = 60_000  # but what is wanted stays wanted: it is tried again now and then
REFUSAL_KEPT_MS = 2_000  # a reader that asks for a refused range again within this time is told the same
NOTES_MAX = 256  # named failures of one block; the others are counted

Int64s = npt.NDArray[np.int64]


class FileFailed(NamedTuple):
    """A file of which a part in this block could not be fetched; [start, stop) in the block."""

    row: int
    path: str
    code: int
    message: str
    start: int
    stop: int


@dataclass(slots=True)
class BlockState:
    """See the module. `needed` is sorted and disjoint, in multiples of 64 but for the end of the block."""

    data_bytes: int
    needed: list[Range]
    version: int
    valid: Extents = field(default_factory=Extents)
    flying: Extents = field(default_factory=Extents)
    changed: Extents = field(default_factory=Extents)
    refused: Extents = field(default_factory=Extents)
    changed_rows: set[int] = field(default_factory=set)
    refused_rows: set[int] = field(default_factory=set)
    notes: dict[int, FileFailed] = field(default_factory=dict)  # by where in the block the failed part begins
    attempts: int = 0
    retry_ms: int = 0
    refused_ms: int = 0
    known: Extents = field(default_factory=Extents)  # pages whose checksums are there

    @property
    def is_full(self) -> bool:
        return all(self.valid.covers(start, stop) for start, stop in self.needed)

    def needed_of(self, start: int, stop: int) -> list[Range]:
        """Return the needed parts of [start, stop)."""
        return (
            Extents(self.needed).within(start, stop)
            if len(self.needed) > 1
            else _clip(self.needed, start, stop)
        )

    def missing(self, ranges: Iterable[Range]) -> list[Range]:
        """Return what of `ranges` is neither valid, nor flying, nor failed."""
        return subtract(ranges, self.valid, self.flying, self.changed, self.refused)

    def is_settled(self) -> bool:
        """Return whether nothing more is fetched, and nothing is to be tried again."""
        if self.flying or (self.refused and self.attempts <= RETRIES_MAX):
            return False
        return not self.missing(self.needed)

    def retry_due(self, now_ms: int) -> bool:
        return bool(self.refused) and now_ms >= self.retry_ms

    def retry(self) -> None:
        """Make what was refused missing again."""
        self.refused = Extents()
        self.refused_rows = set()
        self.forget_notes()

    def forget_notes(self) -> None:
        """Drop the notes that explain nothing any more."""
        self.notes = {
            start: note
            for start, note in self.notes.items()
            if self.changed.intersects([(start, note.stop)]) or self.refused.intersects([(start, note.stop)])
        }

    def forgive(self) -> None:
        """Begin to count attempts anew: somebody wants the block again."""
        self.attempts = 0
        self.retry()

    def begin(self, ranges: Iterable[Range]) -> None:
        """A job for `ranges` starts; all of them were missing."""
        for start, stop in ranges:
            self.flying.add(start, stop)

    def filled(self, start: int, stop: int, owned: Extents) -> list[Range]:
        """Bytes [start, stop) were written; return what becomes valid of it: no more than the job's `owned` ranges."""
        self.flying.remove(start, stop)
        self.refused.remove(start, stop)
        fresh = subtract(owned.within(start, stop), self.valid)
        for low, high in fresh:
            self.valid.add(low, high)
        return fresh

    def end(
        self,
        ranges: Iterable[Range],
        failures: Sequence[FileFailed],
        *,
        final: int,
        now_ms: int,
        version: int | None = None,
    ) -> None:
        """A job for `ranges` is over; `failures` with code `final` are never tried again. What was not told is missing again.

        `version` is the job's, if it is not the block's: its rows are other files than the block's rows.
        """
        for start, stop in ranges:
            self.flying.remove(start, stop)
        is_mine = version is None or version == self.version
        was_refused = False
        for failure in failures:
            is_final = failure.code == final
            (self.changed if is_final else self.refused).add(failure.start, failure.stop)
            if is_mine:
                (self.changed_rows if is_final else self.refused_rows).add(failure.row)
            was_refused |= not is_final
            if len(self.notes) < NOTES_MAX:
                self.notes[failure.start] = failure if is_mine else failure._replace(row=-1)
        for start, stop in self.valid:
            self.changed.remove(start, stop)
            self.refused.remove(start, stop)
        if was_refused:
            delay_ms = min(RETRY_MS_MAX, RETRY_MS_MIN * 2**self.attempts)
            self.attempts = min(self.attempts + 1, RETRIES_MAX + 1)
            self.retry_ms = now_ms + (delay_ms if self.attempts <= RETRIES_MAX else RETRY_SETTLED_MS)
            self.refused_ms = now_ms

    def failure_of(self, ranges: Iterable[Range]) -> FileFailed | None:
        """Return a failure that keeps `ranges` from becoming valid, if there is one."""
        for start, stop in ranges:
            for failed in (self.changed, self.refused):
                for low, high in failed.within(start, stop):
                    return self._note(low, high, is_final=failed is self.changed)
        return None

    def _note(self, start: int, stop: int, *, is_final: bool) -> FileFailed:
        for note in self.notes.values():
            if note.start < stop and start < note.stop:
                return note
        return FileFailed(
            -1,
            "",
            2 if is_final else 3,
            "could not be filled; too many files failed to name each",
            start,
            stop,
        )


def needed_ranges(
    offsets: Int64s, sizes: Int64s, *, origin: int, length: int, is_first_version: bool
) -> list[Range]:
    """Return the ranges of a block that files own, in granules, joined; files by offset, all intersecting the block.

    `origin` is the block's address, `length` its data bytes. In the first version all of the block is needed.
    """
    if is_first_version:
        return [(0, length)]
    starts = np.clip(offsets - origin, 0, length)
    stops = np.clip(offsets + sizes - origin, 0, length)
    stops = np.minimum(-(-stops // GRANULE_BYTES) * GRANULE_BYTES, length)
    return _join(starts, stops)


def miss_ranges(
    offsets: Int64s, sizes: Int64s, *, origin: int, start: int, stop: int, length: int
) -> list[Range]:
    """Return what to fetch where a reader missed [start, stop) of a block: whole files up to 4 MiB, aligned ranges of larger ones.

    Files by offset, all intersecting the asked range; the result lies in the block, in granules, joined.
    """
    begins = np.clip(offsets - origin, 0, length)
    ends = np.clip(offsets + sizes - origin, 0, length)
    is_large = sizes > MISS_UNIT_BYTES
    low = start // MISS_UNIT_BYTES * MISS_UNIT_BYTES
    high = -(-stop // MISS_UNIT_BYTES) * MISS_UNIT_BYTES
    begins = np.where(is_large, np.maximum(begins, low), begins)
    ends = np.where(is_large, np.minimum(ends, high), ends)
    ends = np.minimum(-(-ends // GRANULE_BYTES) * GRANULE_BYTES, length)
    return _join(begins, ends)


def exact_ranges(
    offsets: Int64s, sizes: Int64s, *, origin: int, start: int, stop: int, length: int
) -> list[Range]:
    """Return the granules of files in [start, stop) of a block: what is read through and not kept."""
    low = start // GRANULE_BYTES * GRANULE_BYTES
    begins = np.clip(offsets - origin, low, stop)
    ends = np.clip(offsets + sizes - origin, low, stop)
    ends = np.minimum(-(-ends // GRANULE_BYTES) * GRANULE_BYTES, length)
    return _join(begins, ends)


def file_bytes_in(offsets: Int64s, sizes: Int64s, *, origin: int, start: int, stop: int) -> int:
    """Return the bytes of files, no padding, in [start, stop) of a block."""
    begins = np.clip(offsets - origin, start, stop)
    ends = np.clip(offsets + sizes - origin, start, stop)
    return int((ends - begins).sum())


def _join(starts: Int64s, stops: Int64s) -> list[Range]:
    is_real = stops > starts
    starts, stops = starts[is_real], stops[is_real]
    if not len(starts):
        return []
    breaks = np.flatnonzero(starts[1:] > stops[:-1])
    firsts = np.concatenate(([0], breaks + 1))
    lasts = np.concatenate((breaks, [len(stops) - 1]))
    return list(zip(starts[firsts].tolist(), stops[lasts].tolist(), strict=True))


def _clip(ranges: Sequence[Range], start: int, stop: int) -> list[Range]:
    return [(max(a, start), min(b, stop)) for a, b in ranges if a < stop and start < b]
