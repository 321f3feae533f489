from __future__ import annotations

import dataclasses
import typing
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.framework.core import entries as e
from stoker.framework.core.catalog import Dataset, Slot
from stoker.framework.core.codec import CodecError, decode_entry, encode_entry, named, plain, reader
from stoker.framework.core.departures import Uninstall
from stoker.framework.core.job_table import Job
from stoker.framework.core.volumes import Volume
from stoker.framework.model import Constraint, FileError, FleetSpec, JobState, Manifested

INTS = st.integers(-(2**63), 2**64 - 1)  # what msgpack holds
KINDS: tuple[type[Any], ...] = typing.get_args(e.Entry)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of a type hint that entries use."""
    if dataclasses.is_dataclass(hint) or hasattr(hint, "_fields"):
        hints = typing.get_type_hints(hint)
        return st.builds(typing.cast(Any, hint), **{name: values_of(h) for name, h in hints.items()})
    arguments = typing.get_args(hint)
    if arguments and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
    if arguments:
        return st.tuples(*map(values_of, arguments))
    return INTS if hint is int else st.from_type(hint)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(deadline=None)
@given(data=st.data())
def test_each_kind_of_entry_comes_back_equal(kind: type[Any], data: st.DataObject) -> None:
    entry = data.draw(values_of(kind))
    assert decode_entry(encode_entry(entry)) == entry
    assert encode_entry(decode_entry(encode_entry(entry))) == encode_entry(entry)


def test_bytes_of_an_entry_are_for_ever() -> None:
    stored = bytes.fromhex("92a9536c6f7441646465649303ce4000000007")
    assert encode_entry(e.SlotAdded(3, 2**30, 7)) == stored
    assert decode_entry(stored) == e.SlotAdded(3, 2**30, 7)
    without_disk = bytes.fromhex("92a9536c6f7441646465649203ce40000000")  # before there was an SSD tier
    assert decode_entry(without_disk) == e.SlotAdded(3, 2**30)


FIELDS_EVER = {
    "ClusterCreated": "cluster name wall_ms",
    "EpochBegan": "epoch wall_ms master",
    "FrameworkRegistered": "framework_id",
    "FleetSet": "spec",
    "SlotAdded": "slot_id mem_bytes disk_bytes",
    "SlotResized": "slot_id mem_bytes disk_bytes",
    "SlotMarked": "slot_id is_in reason wall_ms",
    "SlotRemoved": "slot_id",
    "LaunchPlanned": "launch_id slot_id task_id agent_id hostname port secret mem_bytes cpus_milli epoch wall_ms"
    " volume_id disk_bytes role attributes",
    "LaunchEnded": "launch_id reason wall_ms",
    "VolumePlanned": "volume_id slot_id agent_id hostname role disk_bytes wall_ms",
    "VolumeReady": "volume_id",
    "VolumeFailed": "volume_id reason",
    "VolumeReleased": "volume_id reason wall_ms",
    "VolumeAdopted": "volume_id slot_id",
    "VolumeMoved": "volume_id agent_id hostname",
    "VolumeDoomed": "volume_id reason wall_ms",
    "VolumeRemoved": "volume_id",
    "VolumesForgotten": "volume_ids",
    "AgentDrainSet": "agent_id hostname reason until_wall_ms cause",
    "AgentDrainCleared": "agent_id",
    "UninstallBegan": "keep_volumes wall_ms",
    "TeardownPlanned": "left wall_ms",
    "UninstallFinished": "wall_ms",
    "DatasetAdded": "dataset_id name source options replicas policy tier priority wall_ms",
    "ListingBegan": "dataset_id attempt",
    "DatasetListed": "dataset_id manifested wall_ms versions_kept",
    "ListingFailed": "dataset_id error",
    "DatasetChanged": "dataset_id replicas policy priority",
    "DatasetRemoved": "dataset_id",
    "WantedSet": "dataset_id wanted_version rules block_count",
    "JobCreated": "job_id kind dataset_id dataset paths key body fit wanted_version bytes_total files_total"
    " block_count wall_ms",
    "JobStarted": "job_id wall_ms",
    "JobFinished": "job_id state bytes files error_count errors message wall_ms",
    "JobsForgotten": "job_ids",
    "JournalRestored": "epoch ids_ahead generation_min wall_ms",
    "FleetSpec": "instances mem_bytes cpus_milli role disk_bytes constraints roles_more executor",
    "Constraint": "field operator value",
    "FileError": "path code message",
    "Manifested": "generation version digest files bytes address_bytes block_bytes block_count pg_count",
    "Slot": "slot_id mem_bytes launch_id last_agent_id ended_count ended_reason ended_wall_ms disk_bytes",
    "Volume": "volume_id slot_id agent_id hostname role disk_bytes state reason left_ms",
    "Uninstall": "keep_volumes began_ms state left finished_ms",
    "Dataset": "dataset_id name source options replicas policy tier priority created_ms state error attempt"
    " is_listing versions wanted_version rules wanted_block_count",
    "Job": "job_id kind dataset_id dataset paths key body fit wanted_version bytes_total files_total block_count"
    " created_ms state started_ms finished_ms bytes files error_count errors message",
}
WRITTEN = (*KINDS, FleetSpec, Constraint, FileError, Manifested, Slot, Volume, Uninstall, Dataset, Job)


@pytest.mark.parametrize("written", WRITTEN, ids=lambda kind: kind.__name__)
def test_fields_keep_their_places_and_new_ones_have_a_default(written: type[Any]) -> None:
    """A field is told by its place. Add a new one to this table, at the end: what stands here stays."""
    known = FIELDS_EVER[written.__name__].split()
    names = list(typing.get_type_hints(written))
    assert names[: len(known)] == known, "journals hold the fields at these places"
    assert names == known, "tell the new fields here too"


def test_ignores_a_field_of_a_newer_program() -> None:
    assert decode_entry(msgpack.packb(["SlotRemoved", [4, "blue"]])) == e.SlotRemoved(4)
    newer = [*plain(FleetSpec(1, 2, 3, "r")), {"colour": ["blue"]}]
    assert decode_entry(msgpack.packb(["FleetSet", [newer, 1]])) == e.FleetSet(FleetSpec(1, 2, 3, "r"))


def test_a_field_that_an_older_program_did_not_write_takes_its_default() -> None:
    assert decode_entry(msgpack.packb(["FleetSet", [[1, 2, 3]]])) == e.FleetSet(FleetSpec(1, 2, 3))
    listed = e.DatasetListed(1, Manifested(1, 1, "d", 1, 2, 3, 4, 5, 6), 7)
    assert decode_entry(msgpack.packb(["DatasetListed", [1, listed.manifested, 7]])) == listed
    job = Job("j1", "load", 1, "d", (), "", "", False, 1, 2, 3, 4, 5)
    again = reader(Job)(list(job[:13]))
    assert again == job and type(again) is Job and again.state is JobState.PENDING


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xc1", "not msgpack"),
        (b"", "not msgpack"),
        (msgpack.packb({"kind": 1}), "not \\[kind, fields\\]"),
        (msgpack.packb(["SlotAdded"]), "not \\[kind, fields\\]"),
        (msgpack.packb([["SlotAdded"], [1, 2]]), "not \\[kind, fields\\]"),
        (msgpack.packb(["SlotPainted", []]), "'SlotPainted'.*newer"),
        (msgpack.packb(["SlotAdded", {"slot_id": 1}]), "SlotAdded: expected its fields, not dict"),
        (msgpack.packb(["SlotAdded", [1]]), "mem_bytes is missing"),
        (msgpack.packb(["SlotAdded", [1, "much"]]), "SlotAdded.mem_bytes is str, not int"),
        (msgpack.packb(["FleetSet", [7]]), "FleetSet.spec is int"),
        (msgpack.packb(["FleetSet", [[7]]]), "FleetSpec: field mem_bytes"),
        (msgpack.packb(["WantedSet", [1, 1, 7, 0]]), "WantedSet.rules is int"),
        (msgpack.packb(["JobFinished", ["j", "FAILED", 0, 0, 1, ["x"], "", 1]]), "FileError"),
    ],
)
def test_says_what_is_wrong_with_a_record(data: bytes, says: str) -> None:
    with pytest.raises(CodecError, match=says):
        decode_entry(data)


def test_an_enum_travels_as_its_value() -> None:
    job = Job("j1", "load", 1, "d", ("p",), "", "", False, 1, 2, 3, 4, 5, JobState.RUNNING)
    fields = msgpack.unpackb(msgpack.packb(job))
    assert fields[13] == "RUNNING" and reader(Job)(fields) == job
    with pytest.raises(CodecError, match=r"Job.state: .*'RUNNER'"):
        reader(Job)([*fields[:13], "RUNNER", *fields[14:]])


def test_people_read_entries_by_name() -> None:
    entry = e.JobFinished("j1", "FAILED", 0, 0, 1, (FileError("a", "gone", "b"),), "m", 1)
    assert named(entry) | {"errors": 0} == entry._asdict() | {"errors": 0}
    assert named(entry)["errors"] == [{"path": "a", "code": "gone", "message": "b"}]
    assert named(e.FleetSet(FleetSpec(1, 2)))["spec"]["role"] == "*"
