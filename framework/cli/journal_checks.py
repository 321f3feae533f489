"""Is this journal, is this backup good? Every checksum, index, record and blob, each finding in one line.

A check that fails does not stop the others, as long as they can be made without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from stoker.framework.cli.journal_state import State, all_words, decoded, needed_blobs
from stoker.framework.cli.output import count
from stoker.zk.backup import About, Blob, End, read_backup
from stoker.zk.errors import Corrupt, JournalError
from stoker.zk.onlooker import Header, Onlooker, is_empty, read_state

BAD_BLOBS_NAMED_MAX = 20
LOOKS_MAX = 10  # at a log that its leader cuts meanwhile
WORDS = ("cluster", "name", "framework_id", "datasets", "jobs", "slots")


class Check(NamedTuple):
    what: str
    is_good: bool
    detail: str


@dataclass(slots=True)
class Checks:
    """What was looked at, in order."""

    done: list[Check] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return all(check.is_good for check in self.done)

    def good(self, what: str, detail: str) -> None:
        self.done.append(Check(what, True, detail))

    def bad(self, what: str, detail: str) -> None:
        self.done.append(Check(what, False, detail))


def verify_journal(reader: Onlooker) -> Checks:
    """Check the journal; one that its leader goes on writing is checked as of some moment meanwhile.

    :raises JournalError: there is no journal to check, or no way to it.
    """
    checks = Checks()
    try:
        header = reader.header()
    except Corrupt as error:
        checks.bad("header", str(error))
        return checks
    term = header.term
    checks.good(
        "header",
        f"{header.place}: epoch {term.epoch}, level {term.level}, last led by {term.owner or 'nobody'}",
    )
    if is_empty(header):
        checks.good("records", "none: the journal is empty")
        return checks
    _check_snapshots(reader, header, checks)
    state = _check_log(reader, header, checks)
    if state is not None:
        _check_state(state, checks)
        _check_blobs(reader, state, checks)
    return checks


def _check_snapshots(reader: Onlooker, header: Header, checks: Checks) -> None:
    for index in header.snapshots:
        try:
            snapshot = reader.snapshot(index)
            if snapshot is None:
                continue  # forgotten meanwhile, since there is a newer one
            words = {"datasets": len((catalog := decoded(snapshot)).datasets), "jobs": len(catalog.jobs)}
            checks.good("snapshot", f"before record {index:,}: {all_words(words, words)}")
        except JournalError as error:
            checks.bad("snapshot", str(error))


def _check_log(reader: Onlooker, header: Header, checks: Checks) -> State | None:
    """Replay from as far back as there is a state to begin with, and compare with each snapshot on the way."""
    try:
        for _ in range(LOOKS_MAX):
            begun_index, state, compared = _replay(reader, header)
            if state is not None:
                break
            before, header = header, reader.header()
            if (before.first_index, before.snapshots) == (header.first_index, header.snapshots):
                raise Corrupt(f"record {begun_index:,} is missing, but there are later ones: a gap")
            # the log was cut meanwhile
        else:
            raise Corrupt("the log is cut faster than it can be read")
    except JournalError as error:
        checks.bad("log", str(error))
        return None
    newest = max(header.snapshots, default=0)
    if state.next_index < newest:
        checks.bad(
            "log", f"it ends before record {state.next_index:,}, but there is a snapshot before {newest:,}"
        )
    torn = f"; {header.torn_bytes:,} bytes at its end were never acknowledged" if header.torn_bytes else ""
    checks.good(
        "log",
        f"records {begun_index:,} to {state.next_index - 1:,}, no gap and none twice, in "
        f"{count(header.parts, header.part_name)}{torn}"
        if state.next_index > begun_index
        else f"no records since the snapshot{torn}",
    )
    if compared:
        snapshots = count(compared, "later snapshot")
        checks.good("replay", f"leads to exactly what {snapshots} hold{'s' if compared == 1 else ''}")
    return state


def _replay(reader: Onlooker, header: Header) -> tuple[int, State | None, int]:
    """Return where replay began, the state it led to, and how many snapshots agreed; where a record is missing (the log was
    cut under us, or is damaged), its index and None.
    """
    state = _beginning(reader, header)
    begun_index, compared = state.next_index, 0
    for batch in reader.log(begun_index):
        if batch.first_index > state.next_index:
            return state.next_index, None, 0
        state.apply(batch)
        compared += _compare(reader, header, state)
    return begun_index, state, compared


def _beginning(reader: Onlooker, header: Header) -> State:
    """Return the oldest state from which the log goes on without a gap."""
    state = State()
    if header.first_index == 0 and header.parts:
        return state
    for index in header.snapshots:
        if index >= header.first_index or not header.parts:
            snapshot = reader.snapshot(index)
            if snapshot is not None:
                state.apply(snapshot)
                return state
    newest = reader.snapshot()
    if newest is None:
        raise Corrupt(f"records before {header.first_index:,} are gone, and no snapshot holds them")
    state.apply(newest)
    return state


def _compare(reader: Onlooker, header: Header, state: State) -> int:
    if state.next_index not in header.snapshots:
        return 0
    try:
        snapshot = reader.snapshot(state.next_index)
    except JournalError:
        return 0  # told already
    if snapshot is None:
        return 0
    if decoded(snapshot).snapshot() != state.catalog.snapshot():
        raise Corrupt(
            f"the snapshot before record {state.next_index:,} is not what the records before it lead to"
        )
    return 1


def _check_state(state: State, checks: Checks) -> None:
    try:
        state.check()
        checks.good("state", all_words(state.words(), WORDS))
    except JournalError as error:
        checks.bad("state", str(error))


def _check_blobs(reader: Onlooker, state: State, checks: Checks) -> None:
    """Each blob that is pointed to is there; one that is not may be of a version that was forgotten meanwhile."""
    bad = _bad_blobs(state, reader.get_blob)
    if bad[0]:
        index = state.next_index
        for part in read_state(reader, index):
            state.apply(part)
        if state.next_index > index:
            bad = _bad_blobs(state, reader.get_blob)
    _tell_blobs(checks, *bad)


def _bad_blobs(state: State, get_blob: Callable[[str], bytes | None]) -> tuple[list[str], int]:
    bad: list[str] = []
    good = 0

    def get(digest: str) -> bytes | None:
        try:
            return get_blob(digest)
        except Corrupt as error:
            bad.append(str(error))
            return b""

    try:
        for where, digest, data in needed_blobs(state.catalog, get):
            if data is None:
                bad.append(f"{where}: blob {digest} is missing")
            elif data:
                good += 1
    except Corrupt as error:
        bad.append(str(error))
    return bad, good


def _tell_blobs(checks: Checks, bad: list[str], good: int) -> None:
    for text in bad[:BAD_BLOBS_NAMED_MAX]:
        checks.bad("blob", text)
    if len(bad) > BAD_BLOBS_NAMED_MAX:
        checks.bad("blobs", f"and {len(bad) - BAD_BLOBS_NAMED_MAX:,} more")
    if not bad:
        checks.good("blobs", f"{count(good, 'blob')} of datasets, all there, each with its digest")


# --- backups


class Saved:
    """A backup's file that was read whole: `about`, `end`, the state that it holds, and its blobs, read when asked for."""

    def __init__(self, file: BinaryIO, *, name: str) -> None:
        """Read it. :raises Corrupt, TooNew: it is no backup, or does not lead to a state."""
        self.state = State()
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        about: About | None = None
        end: End | None = None
        for part in read_backup(file, name=name):
            if isinstance(part, About):
                about = part
            elif isinstance(part, End):
                end = part
            elif isinstance(part, Blob):
                self._places[part.digest] = (file.tell() - len(part.data), len(part.data))
            else:
                self.state.apply(part)
        assert about is not None and end is not None, "read_backup yields both"
        self.about, self.end = about, end

    def get_blob(self, digest: str) -> bytes | None:
        """Return a blob, None: it is not in the file. :raises Corrupt: the file changed since it was read."""
        if digest not in self._places:
            return None
        offset, size = self._places[digest]
        self._file.seek(offset)
        data = self._file.read(size)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Corrupt("the backup has changed while it was read")
        return data


def verify_backup(file: BinaryIO, *, name: str) -> tuple[Checks, Saved | None]:
    """Check a backup as `verify_journal` does a journal; None: it cannot be read."""
    checks = Checks()
    try:
        saved = Saved(file, name=name)
    except JournalError as error:
        checks.bad("file", str(error))
        return checks, None
    about, end = saved.about, saved.end
    checks.good("file", f"{name}: whole, of {about.place}, epoch {about.epoch}, level {about.level}")
    checks.good(
        "records",
        f"the state before record {end.next_index:,}, {count(end.records, 'record')} since a snapshot",
    )
    _check_state(saved.state, checks)
    _tell_blobs(checks, *_bad_blobs(saved.state, saved.get_blob))
    return checks, saved
