"""Saving a journal's state to a file and bringing it back, for the command line: what is copied, checked and counted on.

The file's bytes are stoker.zk.backup's, the places' those of stoker.zk.restore. Here is what the state needs, and what
makes a restored one safe beside executors that have lived on: see `JournalRestored`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO

import click

from stoker.executor.units import format_bytes
from stoker.framework.cli.journal_checks import Saved
from stoker.framework.cli.journal_state import State, decoded, needed_blobs
from stoker.framework.core.entries import JournalRestored
from stoker.framework.snapshots import encode_snapshot
from stoker.zk.backup import About, BackupWriter, End
from stoker.zk.codec import Term
from stoker.zk.errors import Corrupt
from stoker.zk.home import Snapshot
from stoker.zk.onlooker import Onlooker, read_state
from stoker.zk.places import open_target
from stoker.zk.restore import Needs

AHEAD_MIN = 2**20  # epochs, and ids: more than can have been used between a backup and its restore
GENERATION_MAX = 2**32 - 1
SNAPSHOT_GROWS_MAX = 1024  # bytes: by what a restore adds to a state, which is numbers that get larger
BLOB_TRIES_MAX = 3  # to find a blob that went while it was looked for: its dataset has gone on meanwhile
PROGRESS_INTERVAL_S = 0.2


def back_up(reader: Onlooker, out: BinaryIO) -> tuple[End, int]:
    """Write the state of some moment meanwhile; return what was written of it, and how many bytes.

    :raises JournalError: there is none, it is damaged, or cannot be read; what was written so far is no backup.
    """
    header = reader.header()
    if not header.next_index:
        raise Corrupt(f"{header.place} is empty: there is nothing to save")
    term, progress, state = header.term, Progress("backing up"), State()
    about = About(term.epoch, term.level, term.owner, header.place, time.time_ns() // 1_000_000)
    writer = BackupWriter(out.write, about)
    with progress:
        for part in read_state(reader):
            state.apply(part)
            writer.add(part)
            progress.show(f"record {state.next_index:,} of {max(header.next_index, state.next_index):,}")
        state.check()
        _add_blobs(reader, writer, state, progress)
    return writer.end(state.words()), writer.written_bytes


def _add_blobs(reader: Onlooker, writer: BackupWriter, state: State, progress: Progress) -> None:
    """Add what the state points to. What is not there any more may be of a version that was forgotten meanwhile."""
    added: set[str] = set()
    for attempt in range(BLOB_TRIES_MAX):
        missing = ""
        for where, digest, data in needed_blobs(state.catalog, reader.get_blob):
            if data is None:
                missing = f"{where}: its blob {digest} is missing"
                break
            if digest not in added:
                added.add(digest)
                writer.add(data)
                progress.show(f"blob {len(added):,}, {format_bytes(writer.written_bytes)} in all")
        if not missing:
            return
        index = state.next_index
        for part in read_state(reader, index):
            state.apply(part)
            writer.add(part)
        if state.next_index == index or attempt == BLOB_TRIES_MAX - 1:
            raise Corrupt(f"{missing}: the journal is damaged, see `stoker journal verify`")


@contextlib.contextmanager
def new_file(path: str) -> Iterator[BinaryIO]:
    """Yield a file to write; it gets its name once it is complete and on the disk. `-` is standard output."""
    if path == "-":
        if sys.stdout.isatty():
            raise click.UsageError("a backup is no text: send standard output to a file or a program")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no file that could be replaced; write - for standard output")
    folder = os.path.dirname(os.path.abspath(path))
    descriptor, partial = tempfile.mkstemp(
        prefix=f".{os.path.basename(path)}.", suffix=".partial", dir=folder
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Progress:
    """One line on a terminal, nothing elsewhere; on standard error, since the backup may go to standard output."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._is_shown = sys.stderr.isatty()
        self._next_s = 0.0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, text: str) -> None:
        if self._is_shown and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + PROGRESS_INTERVAL_S
            click.echo(f"\r\x1b[K{self._label}: {text}", nl=False, err=True)


def restore_saved(url: str, secret: str, saved: Saved, *, overwrite: bool) -> int:
    """Return the epoch of the journal that was restored."""
    owner = f"stoker journal restore, process {os.getpid()}"
    try:
        target = open_target(url, secret=secret, owner=owner)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    about, catalog, progress = saved.about, saved.state.catalog, Progress("restoring")
    try:
        with progress:
            target.check(_needs(saved))
            newest_epoch = target.open(overwrite=overwrite)
            for number, (_, _, data) in enumerate(needed_blobs(catalog, saved.get_blob), start=1):
                assert data is not None, "all were there when it was checked"
                target.put_blob(data)
                progress.show(f"blob {number:,} of {saved.end.blobs:,}")
            # The same backup may be restored more than once: then each time is ahead of the one before it too.
            wall_ms = time.time_ns() // 1_000_000
            ahead = AHEAD_MIN + max(0, wall_ms - about.wall_ms) // 1000
            epoch = max(saved.end.epoch, newest_epoch) + ahead
            catalog.apply(JournalRestored(epoch, ahead, min(epoch, GENERATION_MAX), wall_ms))
            # Behind every record of both: nobody who has the state before one of them takes this for the same journal.
            index = max(saved.state.next_index, target.next_index) + 1
            snapshot = Snapshot(index, encode_snapshot(catalog))
            assert decoded(snapshot).snapshot() == catalog.snapshot(), "a snapshot that is not its catalog"
            target.commit(snapshot, Term(epoch, about.level, owner))
            return epoch
    finally:
        target.close()


def _needs(saved: Saved) -> Needs:
    blobs = needed_blobs(saved.state.catalog, saved.get_blob)
    return Needs(
        level=saved.about.level,
        snapshot_bytes=len(encode_snapshot(saved.state.catalog)) + SNAPSHOT_GROWS_MAX,
        blobs_bytes=sum(len(data) for _, _, data in blobs if data is not None),
    )


@contextlib.contextmanager
def seekable(path: str) -> Iterator[BinaryIO]:
    if path != "-":
        with open(path, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(prefix="stoker-restore-") as spooled:
        shutil.copyfileobj(sys.stdin.buffer, spooled)
        spooled.seek(0)
        yield spooled
