"""Jobs as the catalog knows them: what was asked, how it goes, what came of it.

Most of a journal is jobs, and most of a replay is making them. So the table keeps a job as the three pieces that its entries
bring, where a step changes one of them and copies none; a `Job`, all of it flat, is made when somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from stoker.framework.core import entries as e
from stoker.framework.core.base_rules import Wish
from stoker.framework.core.codec import reader, wire_shape
from stoker.framework.core.rules import Rules, wishes
from stoker.framework.model import FileError, JobKind, JobState

# Entries as bare tuples: of JobCreated, JobStarted, JobFinished, JobsForgotten.
Asked = tuple[str, str, int, str, tuple[str, ...], str, str, bool, int, int, int, int, int]
Started = tuple[str, int]
Finished = tuple[str, str, int, int, int, tuple[FileError, ...], str, int]
Forgotten = tuple[tuple[str, ...]]

_Outcome = tuple[int, int, int, tuple[FileError, ...], str]
_Row = tuple[Asked, JobState, int, int, _Outcome]  # state, started_ms, finished_ms in between


class Job(NamedTuple):
    job_id: str
    kind: str
    dataset_id: int
    dataset: str
    paths: tuple[str, ...]
    key: str
    body: str
    fit: bool
    wanted_version: int
    bytes_total: int
    files_total: int
    block_count: int
    created_ms: int
    state: JobState = JobState.PENDING
    started_ms: int = 0
    finished_ms: int = 0
    bytes: int = 0
    files: int = 0
    error_count: int = 0
    errors: tuple[FileError, ...] = ()
    message: str = ""

    @property
    def wishes(self) -> Rules:
        """Return what it adds to what is wanted of its dataset; nothing once it is cancelled."""
        is_wanted = _IS_WANTED.get(self.kind)
        return () if is_wanted is None or self.state is _CANCELLED else wishes(is_wanted, self.paths)


class Jobs(Mapping[str, Job]):
    """The table by job id, oldest first, with what is looked up by key, and the jobs that are not finished."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._rows: dict[str, _Row] = {job.job_id: _row(job) for job in jobs}
        self._of_keys = {row[0][5]: job_id for job_id, row in self._rows.items() if row[0][5]}
        # Those that are not finished; who decides looks at them at every turn, so they are made once.
        self._active: dict[str, Job | None] = {
            job_id: None for job_id, row in self._rows.items() if row[1] not in _FINAL
        }

    def copy(self) -> Jobs:
        twin = Jobs()
        twin._rows, twin._of_keys, twin._active = self._rows.copy(), self._of_keys.copy(), self._active.copy()
        return twin

    def __getitem__(self, job_id: str) -> Job:
        return _made(self._rows[job_id])

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def of_key(self, key: str) -> Job | None:
        job_id = self._of_keys.get(key)
        return None if job_id is None else self[job_id]

    def of_dataset(self, dataset_id: int) -> list[Job]:
        """Return the jobs of a dataset, in the order of their wishes."""
        return [_made(row) for row in self._rows.values() if row[0][2] == dataset_id]

    def active(self) -> list[Job]:
        """Return the jobs that are not finished, oldest first."""
        active = self._active
        for job_id in [job_id for job_id, job in active.items() if job is None]:
            active[job_id] = self[job_id]
        return [job for job in active.values() if job is not None]

    @property
    def active_count(self) -> int:
        return len(self._active)

    def states(self) -> list[JobState]:
        """Return each job's state."""
        return [row[1] for row in self._rows.values()]

    # --- what entries do, many at a time, as bare tuples

    def fit(
        self,
        created: Sequence[Asked],
        started: Sequence[Started],
        finished: Sequence[Finished],
        forgotten: Sequence[Forgotten],
    ) -> bool:
        """See Catalog.fit. That ids of `created` are new is not looked at."""
        changed = set(map(_FIRST, started))
        changed.update(map(_FIRST, finished))
        errors = [error for entry in finished for error in entry[5]]
        leaving = list(chain.from_iterable(map(_FIRST, forgotten)))
        gone = set(leaving)
        return (
            changed.difference(map(_FIRST, created)) <= self._rows.keys()
            and gone <= self._rows.keys()
            and len(gone) == len(leaving)
            and gone.isdisjoint(changed)
            and self._active.keys().isdisjoint(gone)
            and _STATES.keys() >= {entry[1] for entry in finished}
            and all(isinstance(error, tuple) and list(map(type, error)) == _ERROR for error in errors)
        )

    def create(self, entries: Sequence[Asked]) -> None:
        rows, active, of_keys = self._rows, self._active, self._of_keys
        for entry in entries:
            job_id, key = entry[0], entry[5]
            rows[job_id] = (entry, _PENDING, 0, 0, _NOTHING)
            active[job_id] = None
            if key:
                of_keys[key] = job_id

    def start(self, entries: Sequence[Started]) -> None:
        rows, active = self._rows, self._active
        for job_id, wall_ms in entries:
            rows[job_id] = (rows[job_id][0], _RUNNING, wall_ms, 0, _NOTHING)
            active[job_id] = None

    def finish(self, entries: Sequence[Finished]) -> None:
        rows, active = self._rows, self._active
        for job_id, state, size, files, error_count, errors, message, wall_ms in entries:
            asked, _, started_ms, _, _ = rows[job_id]
            if errors:
                errors = tuple(map(_READ_ERROR, errors))
            outcome = (size, files, error_count, errors, message)
            rows[job_id] = (asked, _STATES[state], started_ms, wall_ms, outcome)
            active.pop(job_id, None)

    def forget(self, entries: Sequence[Forgotten]) -> list[Wish]:
        """Forget finished jobs; return what they wished."""
        pop, of_keys, wished = self._rows.pop, self._of_keys, []
        for job_id in chain.from_iterable(map(_FIRST, entries)):
            asked, state, _, _, _ = pop(job_id)
            kind, key = asked[1], asked[5]
            if key and of_keys.get(key) == job_id:
                del of_keys[key]
            if state is not _CANCELLED and kind in _IS_WANTED:
                wished.append((asked[2], _IS_WANTED[kind], asked[4]))
        return wished


def job_id_of(number: int) -> str:
    """Return the id of the `number`th job; ids sort as they were given out.

    >>> job_id_of(12)
    'j0000000012'
    """
    return "j" + str(number).zfill(10)


def job_created(entry: Asked) -> Job:
    """Return the job that the entry makes."""
    jobs = Jobs()
    jobs.create((entry,))
    return jobs[entry[0]]


def job_started(job: Job, entry: Started) -> Job:
    """Return what the job is after the entry."""
    jobs = Jobs((job,))
    jobs.start((entry,))
    return jobs[job.job_id]


def job_finished(job: Job, entry: Finished) -> Job:
    """Return what the job is after the entry."""
    jobs = Jobs((job,))
    jobs.finish((entry,))
    return jobs[job.job_id]


def _row(job: Job) -> _Row:
    fields: tuple[Any, ...] = job
    return fields[:_ASKED], job.state, job.started_ms, job.finished_ms, fields[_OUTCOME:]


def _made(row: _Row) -> Job:
    asked, state, started_ms, finished_ms, outcome = row
    return tuple.__new__(Job, (*asked, state, started_ms, finished_ms, *outcome))


_ASKED = len(e.JobCreated._fields)
_OUTCOME = Job._fields.index("bytes")
_ERROR = list(wire_shape(FileError))
_READ_ERROR = reader(FileError)  # of one that is a bare tuple, as msgpack brings it
_NOTHING: _Outcome = (0, 0, 0, (), "")
_FIRST: Callable[[Any], Any] = itemgetter(0)
_IS_WANTED = {JobKind.LOAD.value: True, JobKind.FREE.value: False}
_STATES = {state.value: state for state in JobState}
_FINAL = frozenset(state for state in JobState if state.is_final)
_PENDING, _RUNNING, _CANCELLED = JobState.PENDING, JobState.RUNNING, JobState.CANCELLED  # slow to look up
assert Job._fields[: _ASKED - 1] == e.JobCreated._fields[:-1] and Job._fields[_ASKED - 1] == "created_ms"
assert Job._fields[_ASKED:_OUTCOME] == ("state", "started_ms", "finished_ms")
assert Job._fields[_OUTCOME:] == e.JobFinished._fields[2:-1]
assert (JobState.PENDING, 0, 0, *_NOTHING) == tuple(Job._field_defaults.values())
