"""Putting a journal's state where there is none: the other half of a backup. Bytes only.

A `Target` is the place, taken for the time of a restore: nobody leads there meanwhile. The state comes as one snapshot,
with its blobs; `commit` is one step that either happened or not, so a restore that was interrupted leaves no journal
behind, and can be done again. Only where a journal is overwritten are there steps between: then the epoch says so
(`mark_unfinished`), nobody leads what is half there, and the next restore finishes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from stoker.zk.blobs import LocalBlobs
from stoker.zk.codec import (
    Term,
    check_level,
    encode_snapshot_header,
    encode_term,
    mark_unfinished,
    unfinished_restore,
)
from stoker.zk.disk import Disk
from stoker.zk.errors import Corrupt, JournalError, TooLarge, TooNew, Unavailable
from stoker.zk.home import Snapshot
from stoker.zk.journal import SNAPSHOT_BYTES_MAX
from stoker.zk.local_onlooker import LocalOnlooker
from stoker.zk.lock import take_lock
from stoker.zk.onlooker import is_empty
from stoker.zk.segments import snapshot_name

LOCK_WAIT_MS = 5_000  # a scheduler that waits at an empty journal has its lock for a moment now and then
ASIDE = "before-restore"


class NotEmpty(JournalError):
    """There is a journal already, and it was not said that it may be overwritten. Nothing was changed."""


class Needs(NamedTuple):
    """What a state asks of its place: the level of its journal, the bytes of its snapshot (at most) and of all its blobs."""

    level: int
    snapshot_bytes: int
    blobs_bytes: int


class Target(Protocol):
    """See the module."""

    def check(self, needs: Needs) -> None:
        """Look, before `open` changes anything, whether the place may hold that. No I/O.

        :raises TooLarge, TooNew: it may not; what is there would be gone, and nothing could take its place.
        """
        ...

    def open(self, *, overwrite: bool) -> int:
        """Take the place; return the newest epoch that was there, 0 if none.

        :raises NotEmpty, Locked, Unavailable, Denied: and nothing was changed.
        """
        ...

    @property
    def next_index(self) -> int:
        """Of the journal that was there when it was opened, 0 if none or none that could be read."""
        ...

    def put_blob(self, data: bytes) -> None:
        """:raises Unavailable, TooLarge: ..."""
        ...

    def commit(self, snapshot: Snapshot, term: Term) -> None:
        """Make it a journal of `term` that holds `snapshot`; the epoch is above all that were there.

        :raises Unavailable: it may or may not have happened. :raises Fenced: somebody led meanwhile; nothing happened.
        """
        ...

    def close(self) -> None:
        """Give the place free; idempotent."""
        ...


class LocalTarget:
    """A directory. What it held is kept beside, in `before-restore-N/`: nothing is deleted."""

    def __init__(self, directory: str, *, owner: str, disk: Disk | None = None) -> None:
        self._directory = os.path.abspath(directory)
        self._owner = owner
        self._disk = disk or Disk()
        self._blobs = LocalBlobs(self._in("blobs"), self._disk)
        self._lock = -1
        self._epoch = 0  # the newest that was here
        self._next_index = 0  # of what was here

    def check(self, needs: Needs) -> None:
        """See Target.check. A directory holds as many blobs as there are."""
        check_needs(needs)

    def open(self, *, overwrite: bool) -> int:
        """See Target.open."""
        with self._translated("restore into"):
            try:
                self._disk.make_directory(self._directory)
                self._lock = take_lock(self._directory, self._owner, wait_ms=LOCK_WAIT_MS)
                if self._look(overwrite=overwrite):
                    self._put_aside()
                for folder in ("log", "snapshots", "blobs"):
                    self._disk.make_directory(self._in(folder))
            except BaseException:
                self.close()
                raise
        return self._epoch

    @property
    def next_index(self) -> int:
        """See Target.next_index."""
        return self._next_index

    def put_blob(self, data: bytes) -> None:
        """See Target.put_blob."""
        with self._translated("store a blob in"):
            self._blobs.put(data)

    def commit(self, snapshot: Snapshot, term: Term) -> None:
        """See Target.commit. The term goes first where the place is empty (so it stays), and last where it was not."""
        assert term.epoch > self._epoch
        header = encode_snapshot_header(snapshot.data, epoch=term.epoch, next_index=snapshot.next_index)
        name = snapshot_name(snapshot.next_index)
        steps = [
            (self._in("epoch"), (encode_term(term),)),
            (self._in("snapshots", name), (header, snapshot.data)),
        ]
        with self._translated("restore into"):
            is_marked = unfinished_restore(self._read("epoch")) is not None
            for path, pieces in reversed(steps) if is_marked else steps:
                self._disk.replace_file(path, *pieces)

    def close(self) -> None:
        """See Target.close."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _look(self, *, overwrite: bool) -> bool:
        """Return whether something has to be put aside. :raises NotEmpty: and that must not be."""
        unfinished = unfinished_restore(self._read("epoch"))
        if unfinished is not None:
            self._epoch, _, self._next_index = unfinished
            return True
        try:
            header = LocalOnlooker(self._directory).header()
            self._epoch, self._next_index = header.term.epoch, header.next_index
            if is_empty(header):
                return False
            what = f"holds a journal of {header.next_index} records"
        except (Corrupt, TooNew) as error:
            what = f"holds what is no good journal ({error})"
        if overwrite:
            return True
        raise NotEmpty(
            f"{self._directory} {what}: restore into an empty place, or say --overwrite (what is there is put aside)"
        )

    def _put_aside(self) -> None:
        """Move what is here into a directory of its own, where it is a journal again; go on where that was interrupted."""
        term = self._read("epoch")
        unfinished = unfinished_restore(term)
        number = unfinished[1] if unfinished else self._free_number()
        aside = self._in(f"{ASIDE}-{number}")
        self._disk.make_directory(aside)
        if unfinished is None:
            if term:
                self._disk.replace_file(os.path.join(aside, "epoch"), term)
            self._disk.replace_file(self._in("epoch"), mark_unfinished(self._epoch, number, self._next_index))
        for folder in ("log", "snapshots", "blobs"):
            if not os.path.isdir(self._in(folder)):
                continue
            if not os.path.exists(os.path.join(aside, folder)):
                self._disk.rename(self._in(folder), os.path.join(aside, folder))
            elif folder != "blobs":
                self._empty(self._in(folder))  # of the restore that was interrupted
        self._disk.sync_directory(aside)
        self._disk.sync_directory(self._directory)

    def _free_number(self) -> int:
        number = 1
        while os.path.exists(self._in(f"{ASIDE}-{number}")):
            number += 1
        return number

    def _empty(self, folder: str) -> None:
        for name in os.listdir(folder):
            self._disk.unlink(os.path.join(folder, name))

    def _read(self, name: str) -> bytes:
        try:
            with open(self._in(name), "rb") as file:
                return file.read(64 * 1024)
        except FileNotFoundError:
            return b""

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(f"cannot {what} {self._directory}: {error.strerror or error}") from error

    def _in(self, *names: str) -> str:
        return os.path.join(self._directory, *names)


def check_needs(needs: Needs) -> None:
    """:raises TooLarge, TooNew: no place may hold that."""
    check_level(needs.level)
    if needs.snapshot_bytes > SNAPSHOT_BYTES_MAX:
        raise TooLarge(
            f"a snapshot of some {needs.snapshot_bytes} bytes; at most {SNAPSHOT_BYTES_MAX} are allowed: "
            "nothing was changed"
        )
