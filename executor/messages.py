"""What executors and the leader tell each other: heartbeats up, assignments down, as msgpack over HTTP.

An executor POSTs a `Heartbeat` to `/v1/executors/heartbeat` of the leader every HEARTBEAT_INTERVAL_MS, sooner where it has
news that somebody may wait for, or where the leader asks for it. The answer says
whether it still has a place, which schedulers there are, and, when the executor's is older, the `Assignment`: all that
this executor should know and hold. An assignment is a wish, not a command list: the executor finds by itself what is
missing, so nothing is owed after a loss. It refuses an assignment or an answer of a lower epoch than it has seen.

Unknown fields are ignored, known ones never change meaning. Values only: no socket, no clock.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

HEARTBEAT_INTERVAL_MS = 1_000
HEARTBEAT_INTERVAL_MS_MAX = (
    2_500  # whatever the leader asks for: it must not take a quiet executor for a lost one
)
HEARTBEAT_BYTES_MAX = 4 * 1024 * 1024
HEARTBEAT_CHANGES_MAX = 4_096  # added + removed blocks of one dataset; beyond that the whole bitmap is sent
UNKNOWN_MAX = 1_000  # datasets that an executor asks about in one heartbeat
FAILURES_MAX = 100  # named failures of one dataset in a heartbeat; the rest is only counted

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FileFailure:
    """A file that could not be filled; `code` is a wire.Failure."""

    row: int
    path: str
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class Residency:
    """What one executor holds of one dataset generation.

    `bitmap` (bit i of byte i // 8, lowest first: block i is full here) is there in a whole heartbeat; else `added` and
    `removed` are the changes since the last acknowledged one. A block is *settled* when nothing more can be filled now:
    it is full, or all that is missing failed. `wanted_*` count the blocks that the assignment with `wanted_version`
    wants here.
    """

    dataset_id: int
    generation: int
    version: int
    bitmap: bytes | None = None
    added: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    full_blocks: int = 0
    cached_bytes: int = 0  # bytes of files (no padding) that are valid here, partly filled blocks included
    held_bytes: int = 0  # tier bytes used, padding included
    wanted_version: int = 0
    wanted_blocks: int = 0
    wanted_settled: int = 0
    wanted_full: int = 0
    wanted_bytes: int = 0  # bytes of the files' parts that lie in wanted blocks here
    wanted_cached_bytes: int = 0  # of those, valid here
    wanted_files: int = 0  # files that begin in wanted blocks here
    wanted_cached_files: int = 0  # of those, in settled blocks, without the failed ones
    unfit_blocks: int = 0  # wanted, but the tier is full
    filled_bytes: int = 0  # since this incarnation began, from the under store
    copied_bytes: int = 0  # since this incarnation began, from other executors
    served_bytes: int = 0
    failed_count: int = 0
    failures: tuple[FileFailure, ...] = ()
    saving_blocks: int = 0  # of the assignment's `kept`, on their way here
    unsaved_blocks: int = 0  # of those, that find no room


@dataclass(frozen=True, slots=True)
class DiskReport:
    """The SSD tier of an executor. `error_count`: since this incarnation began; `last_error` says what the newest was.

    `is_stuck`: its disk does not answer just now; the MEM tier serves on.
    """

    capacity_bytes: int
    used_bytes: int = 0
    lent_bytes: int = 0
    unknown_bytes: int = 0  # of used_bytes: of datasets that the assignment does not name
    error_count: int = 0
    last_error: str = ""
    is_stuck: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """`capacity_bytes`, `used_bytes` and `lent_bytes` are of the MEM tier, `disk` is of the SSD tier, if there is one.

    `unknown`: (dataset id, generation) of blocks that are kept here and that the assignment does not name; the answer says
    which of them were removed.

    `cleared_version`: what an assignment of this version (of the epoch seen), or one after it, no longer names is not
    served here any more, and no reader on this host was left with a descriptor of it; 0: not even of the epoch's first.

    `refused_count`: answers and messages of deposed leaders, told by their epochs, since the executor began.
    """

    cluster: bytes
    slot_id: int
    launch_id: int
    incarnation: int
    secret: str
    sequence: int
    whole: bool
    epoch_seen: int
    assignment_version: int
    host: str
    port: int
    socket_path: str
    abstract_socket: str  # without the leading NUL; empty: none
    boot_id: str
    pid: int
    capacity_bytes: int
    used_bytes: int
    lent_bytes: int
    datasets: tuple[Residency, ...] = ()
    cleared_version: int = 0
    disk: DiskReport | None = None
    unknown: tuple[tuple[int, int], ...] = ()
    refused_count: int = 0


@dataclass(frozen=True, slots=True)
class SlotAddress:
    """Where a slot's executor is now; port 0: not running."""

    slot_id: int
    launch_id: int
    incarnation: int
    host: str
    port: int
    socket_path: str
    abstract_socket: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class DatasetAssignment:
    """One dataset: how to read it, where its blocks belong, and what of it is wanted.

    `homes` is u16 little endian, [replicas][pg_count]: positions in the assignment's `slots`; 0xFFFF: none. A block's PG
    is its index mod pg_count; row 0 is the first home. `wanted` is a list of (included, path prefix) rules, the last that
    matches a path wins, "" matches all; nothing matches: not wanted. Two generations of a dataset may stand side by side.

    `spares` (empty, or u16 as `homes`, one a PG) are positions of slots that hold blocks of the PG though they are no
    home of it: a home copies from there what it lacks. `kept` (empty, or bit i of byte i // 8, lowest first, for block
    i) are blocks that only executors hold which are about to end: their first homes take them in, wanted or not, as far
    as there is room.
    """

    dataset_id: int
    name: str
    generation: int
    version: int
    digest: str  # of the manifest's root, hex SHA-256
    source: str
    options: dict[str, str]
    policy: str
    priority: int
    block_bytes: int
    pg_count: int
    replicas: int
    homes: bytes
    wanted: tuple[tuple[bool, str], ...]
    wanted_version: int
    allotment_bytes: int  # 0: no limit of its own
    spares: bytes = b""
    kept: bytes = b""
    tier: str = "mem"  # or "ssd"


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that an executor should know. `version` grows within an epoch; (epoch, version) decides which is newer.

    `residency_complete` False (a new leader, slots not yet heard): hold what you hold, free nothing.
    """

    epoch: int
    version: int
    placement_version: int
    residency_complete: bool
    slots: tuple[SlotAddress, ...]
    datasets: tuple[DatasetAssignment, ...]


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """`status`: "ok"; "stale" (this launch has no place any more: end); "unknown" (the leader does not know yet: keep on).

    `removed`: which of the heartbeat's unknown (dataset id, generation) are surely of no use to anybody any more.
    """

    status: str
    epoch: int
    sequence: int  # acknowledged
    want_whole: bool
    schedulers: tuple[str, ...]  # http://host:port, the leader first
    assignment: Assignment | None = None
    interval_ms: int = HEARTBEAT_INTERVAL_MS  # until the next one
    removed: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Summons:
    """What the leader sends, as a framework message of Mesos', to an executor that does not find it by itself."""

    epoch: int
    schedulers: tuple[str, ...]  # http://host:port, the leader first


NO_HOME = 0xFFFF

# The fields of each value, in order.
_NAMES: dict[type, dict[str, None]] = {
    cls: dict.fromkeys(field.name for field in dataclasses.fields(cls))
    for cls in (
        FileFailure,
        Residency,
        DiskReport,
        Heartbeat,
        SlotAddress,
        DatasetAssignment,
        Assignment,
        HeartbeatAnswer,
        Summons,
    )
}


def encode(value: Any) -> bytes:
    """Return the msgpack of one of this module's values: of the map that `dataclasses.asdict` makes of it."""
    return bytes(msgpack.packb(value, default=_as_map, use_bin_type=True))


def decode_heartbeat(data: bytes) -> Heartbeat:
    """:raises ValueError: not a heartbeat."""
    fields = _unpack(data)
    residencies = tuple(_residency(r) for r in fields.pop("datasets", ()))
    disk = fields.pop("disk", None)
    return _make(
        Heartbeat,
        fields,
        datasets=residencies,
        disk=None if disk is None else _disk(disk),
        unknown=_keys(fields.pop("unknown", ())),
    )


def decode_answer(data: bytes) -> HeartbeatAnswer:
    """:raises ValueError: not a heartbeat's answer."""
    fields = _unpack(data)
    raw = fields.pop("assignment", None)
    fields["schedulers"] = tuple(fields.get("schedulers", ()))
    fields["removed"] = _keys(fields.get("removed", ()))
    return _make(HeartbeatAnswer, fields, assignment=None if raw is None else assignment_from(raw))


def decode_summons(data: bytes) -> Summons:
    """:raises ValueError: not a summons."""
    fields = _unpack(data)
    fields["schedulers"] = tuple(fields.get("schedulers", ()))
    summons = _make(Summons, fields)
    if type(summons.epoch) is not int or not all(type(url) is str for url in summons.schedulers):
        raise ValueError("a summons has an epoch and URLs")
    return summons


def assignment_from(raw: dict[str, Any]) -> Assignment:
    """Return the assignment whose `dataclasses.asdict` is `raw`.

    :raises ValueError: a field is missing or has the wrong shape.
    """
    raw = dict(raw)
    slots = tuple(_make(SlotAddress, dict(s)) for s in raw.pop("slots", ()))
    datasets = tuple(_dataset(d) for d in raw.pop("datasets", ()))
    return _make(Assignment, raw, slots=slots, datasets=datasets)


def _disk(raw: Any) -> DiskReport:
    if not isinstance(raw, dict):
        raise ValueError("expected a map of the SSD tier")
    return _make(DiskReport, raw)


def _keys(raw: Any) -> tuple[tuple[int, int], ...]:
    """:raises ValueError: not a list of pairs of whole numbers."""
    try:
        keys = tuple((dataset_id, generation) for dataset_id, generation in raw)
    except TypeError as error:
        raise ValueError(f"expected pairs of numbers: {error}") from error
    if not all(type(number) is int for key in keys for number in key):
        raise ValueError("expected pairs of whole numbers")
    return keys


def _unpack(data: bytes) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(data, raw=False)  # nothing in it may be longer than `data`
    except Exception as error:  # msgpack raises a handful of unrelated types for bad bytes
        raise ValueError(f"not msgpack: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError("expected a msgpack map")
    return fields


def _residency(raw: dict[str, Any]) -> Residency:
    fields = dict(raw)
    fields["added"] = tuple(fields.get("added", ()))
    fields["removed"] = tuple(fields.get("removed", ()))
    failures = tuple(_make(FileFailure, dict(f)) for f in fields.pop("failures", ()))
    return _make(Residency, fields, failures=failures)


def _dataset(raw: dict[str, Any]) -> DatasetAssignment:
    fields = dict(raw)
    fields["wanted"] = tuple((bool(i), str(p)) for i, p in fields.get("wanted", ()))
    return _make(DatasetAssignment, fields)


def _as_map(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in _NAMES[type(value)]}


def _make(cls: type[_T], fields: dict[str, Any], **more: Any) -> _T:
    known = _NAMES[cls]
    if not fields.keys() <= known.keys():
        fields = {name: value for name, value in fields.items() if name in known}
    try:
        return cls(**fields, **more)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error
