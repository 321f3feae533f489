"""Snapshots as bytes: whole, the same as in one piece, and never read wrong."""

from __future__ import annotations

import gc

import msgpack
import pytest

from stoker.framework.core import entries as e
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import CodecError
from stoker.framework.core.job_table import job_id_of
from stoker.framework.model import FleetSpec
from stoker.framework.snapshots import ROWS_MAX, TABLES, decode_snapshot, encode_snapshot


def full_catalog(jobs: int = 10) -> Catalog:
    catalog = Catalog()
    for entry in (
        e.ClusterCreated(bytes(16), "stoker", 1),
        e.EpochBegan(3, 2, "m:5050"),
        e.FleetSet(FleetSpec(1, 2**30, 100, "*")),
        e.SlotAdded(1, 2**30),
        e.DatasetAdded(1, "d", "/x", (("key", "value"),), 1, "keep", "mem", 0, 3),
    ):
        catalog.apply(entry)
    for number in range(1, jobs + 1):
        catalog.apply(
            e.JobCreated(job_id_of(number), "load", 1, "d", ("a/b",), f"k{number}", "x", False, 0, 1, 1, 1, 4)
        )
    return catalog


@pytest.mark.parametrize("jobs", [0, 10, 2 * ROWS_MAX + 1])
def test_a_snapshot_is_the_catalog(jobs: int) -> None:
    catalog = full_catalog(jobs)
    data = encode_snapshot(catalog)
    assert data == msgpack.packb(catalog.snapshot()), "the pieces are the whole"
    again = decode_snapshot(data)
    assert again.snapshot() == catalog.snapshot()
    assert (again.master, again.epoch, len(again.active_jobs())) == ("m:5050", 3, jobs)


def test_what_is_long_is_known() -> None:
    long = {
        name
        for name, value in full_catalog().snapshot().items()
        if isinstance(value, list) and name in TABLES
    }
    assert long == TABLES


def test_a_cut_or_lengthened_snapshot_is_none() -> None:
    data = encode_snapshot(full_catalog())
    for bad in (b"", data[:-1], data[: len(data) // 2], data + b"\xc0", b"\x80", b"\xc1"):
        with pytest.raises(CodecError):
            decode_snapshot(bad)
    assert gc.isenabled(), "also after a failure"
