"""Replay is `decode_entry` and `apply`, record by record, and says which record is not one or does not fit."""

from __future__ import annotations

import msgpack
import pytest

from stoker.framework.core import entries as e
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import CodecError, NewerError, decode_entry, encode_entry
from stoker.framework.core.job_table import job_id_of
from stoker.framework.core.replay import REPLAYED_MAX, TOGETHER, replay
from stoker.framework.model import FileError, FleetSpec, Manifested

MANIFEST = Manifested(1, 1, "0" * 64, 10, 2**20, 2**20, 2**20, 1, 1)
LIFE = (
    e.ClusterCreated(bytes(16), "c", 1),
    e.EpochBegan(1, 2),
    e.FleetSet(FleetSpec(1, 2**26)),
    e.SlotAdded(1, 2**26),
    e.LaunchPlanned(1, 1, "t", "a", "h", 1, "s", 2**26, 500, 1, 3),
    e.DatasetAdded(1, "d", "s3://b", (("k", "v"),), 1, "keep", "mem", 0, 4),
    e.ListingBegan(1, 1),
    e.DatasetListed(1, MANIFEST, 5),
    e.WantedSet(1, 1, ((True, ""),), 1),
    e.JobCreated(job_id_of(1), "load", 1, "d", (), "key", "body", False, 1, 1, 1, 1, 6),
    e.JobStarted(job_id_of(1), 7),
    e.JobFinished(job_id_of(1), "FAILED", 1, 1, 1, (FileError("p", "changed", "m"),), "1 failed", 8),
    e.WantedSet(1, 2, ((True, ""), (False, "a")), 1),
    e.JobCreated(job_id_of(2), "free", 1, "d", ("a",), "", "body", False, 2, 1, 1, 1, 9),
    e.JobFinished(job_id_of(2), "CANCELLED", 0, 0, 0, (), "", 10),
    e.JobsForgotten((job_id_of(1), job_id_of(2))),
    e.LaunchEnded(1, "why", 11),
)
RECORDS = [encode_entry(entry) for entry in LIFE]


@pytest.mark.parametrize("count", range(len(LIFE) + 1))
def test_it_comes_to_what_one_by_one_comes_to(count: int) -> None:
    made, told = Catalog(), Catalog()
    replay(made, RECORDS[:count], 0)
    for record in RECORDS[:count]:
        told.apply(decode_entry(record))
    assert made.snapshot() == told.snapshot()
    for job in made.jobs.values():
        assert all(type(error) is FileError for error in job.errors)


def test_what_is_wanted_is_there_after_each_call_however_many_records_it_has() -> None:
    """Datasets get it late, once a call; a newer version, a change and a removal in between see it all the same."""
    life: list[e.Entry] = list(LIFE[:8])
    life += [e.DatasetAdded(2, "two", "s3://b", (), 1, "keep", "mem", 0, 5), e.ListingBegan(2, 1)]
    for number in range(1, 700):
        dataset_id = 1 + number % 2
        job_id, paths = job_id_of(number), () if number % 7 == 0 else (f"p{number % 23}",)
        rules = tuple((True, path) for path in paths or ("",))
        life.append(e.WantedSet(dataset_id, number, rules, number))
        life.append(
            e.JobCreated(job_id, "load", dataset_id, "d", paths, "", "b", False, number, 1, 1, 1, number)
        )
        life.append(e.JobFinished(job_id, "SUCCEEDED", 1, 1, 0, (), "", number))
        if number % 5 == 0:
            life.append(e.JobsForgotten(tuple(job_id_of(n) for n in range(number - 4, number + 1))))
        if number % 50 == 0:
            life += [e.ListingBegan(1, number), e.DatasetChanged(1, 1, "lru", 1)]
    life.append(e.DatasetRemoved(2))
    records = [encode_entry(entry) for entry in life]
    for step in (1, 50, TOGETHER - 1, TOGETHER + 1, len(records)):
        made, told = Catalog(), Catalog()
        for start in range(0, len(records), step):
            replay(made, records[start : start + step], start)
            for record in records[start : start + step]:
                told.apply(decode_entry(record))
            assert made.snapshot() == told.snapshot()


def test_an_entry_of_an_older_or_a_newer_program_is_read_as_ever() -> None:
    fields = msgpack.unpackb(RECORDS[9])[1]
    longer = [*RECORDS[:9], msgpack.packb(["JobCreated", [*fields, "more"]])]
    made, told = Catalog(), Catalog()
    replay(made, longer, 0)
    replay(told, RECORDS[:10], 0)
    assert made.snapshot() == told.snapshot()


@pytest.mark.parametrize("place", [0, 3, 9, 16])
@pytest.mark.parametrize(
    ("record", "kind", "says"),
    [
        (b"\xc1", CodecError, "not msgpack"),
        (b"", CodecError, "not msgpack"),
        (RECORDS[1] + b"\xc0", CodecError, "not msgpack"),
        (RECORDS[1][:-1], CodecError, "not msgpack"),
        (msgpack.packb(7), CodecError, "not \\[kind, fields\\]"),
        (msgpack.packb(["SlotPainted", []]), NewerError, "newer"),
        (msgpack.packb(["JobStarted", ["j", "soon"]]), CodecError, "JobStarted.wall_ms is str"),
        (msgpack.packb(["JobStarted", {"job_id": 1, "wall_ms": 2}]), CodecError, "expected its fields"),
        (msgpack.packb(["WantedSet", [1, 1, 7, 0]]), CodecError, "WantedSet.rules is int"),
        (msgpack.packb([{"a": 1}, [1]]), CodecError, "not"),
        (msgpack.packb(["JobFinished", ["j9", "PAUSED", 0, 0, 0, [], "", 1]]), CodecError, "does not follow"),
        (encode_entry(e.JobsForgotten(("j9",))), CodecError, "does not follow from what is before it"),
        (encode_entry(e.WantedSet(9, 1, (), 0)), CodecError, "does not follow from what is before it"),
        (encode_entry(e.JobStarted("j9", 1)), CodecError, "does not follow from what is before it"),
        (encode_entry(e.EpochBegan(0, 1)), CodecError, "does not follow from what is before it"),
    ],
)
def test_the_record_that_is_wrong_is_named(
    place: int, record: bytes, kind: type[CodecError], says: str
) -> None:
    records = [*RECORDS[:place], record, *RECORDS[place:]]
    with pytest.raises(CodecError, match=f"^record {700 + place}.*{says}") as caught:
        replay(Catalog(), records, 700)
    assert type(caught.value) is kind


def test_a_record_of_two_entries_is_none() -> None:
    with pytest.raises(CodecError, match="record 1"):
        replay(Catalog(), [RECORDS[0], RECORDS[1] + RECORDS[2]], 0)


def test_it_is_given_a_bounded_number_of_records() -> None:
    with pytest.raises(AssertionError):
        replay(Catalog(), [b""] * (REPLAYED_MAX + 1), 0)


def test_fields_that_belong_to_the_record_beside_it_are_no_entry() -> None:
    """All their types together are those of two records; each by itself is not."""
    records = [
        msgpack.packb(["JobStarted", ["j0000000001", 1, "j0000000002"]]),
        msgpack.packb(["JobStarted", [2]]),
    ]
    with pytest.raises(CodecError, match="record 5"):
        replay(Catalog(), records, 5)


def test_however_a_replay_is_sliced_the_rules_of_forgotten_jobs_are_the_same() -> None:
    entries: list[e.Entry] = [e.DatasetAdded(1, "d", "file:/x", (), 1, "keep", "mem", 0, 1)]
    ids = [job_id_of(number) for number in range(1, 41)]
    for job_id in ids:
        entries.append(e.JobCreated(job_id, "load", 1, "d", ("a",), "", "", False, 1, 0, 0, 0, 1))
        entries.append(e.JobFinished(job_id, "SUCCEEDED", 0, 0, 0, (), "", 1))
    entries += [e.JobsForgotten((job_id,)) for job_id in ids]
    live, replayed = Catalog(), Catalog()
    for entry in entries:
        live.apply(entry)
    replay(replayed, [encode_entry(entry) for entry in entries], 0)
    assert live.snapshot() == replayed.snapshot()
