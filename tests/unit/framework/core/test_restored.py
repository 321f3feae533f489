"""After a backup was restored: what was promised since is forgotten, and none of its names means something else now."""

from __future__ import annotations

import pytest

from stoker.framework.core import entries as e
from stoker.framework.core.actions import StartListing
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.datasets import start_listing
from stoker.framework.core.fleet import Fleet
from stoker.framework.model import FleetSpec, Manifested, Settings
from stoker.framework.snapshots import decode_snapshot, encode_snapshot

AHEAD = 1_000_000
RESTORED = e.JournalRestored(epoch=AHEAD + 7, ids_ahead=AHEAD, generation_min=AHEAD + 7, wall_ms=99)
SPEC = FleetSpec(1, 2**30)


def catalog(*entries: e.Entry) -> Catalog:
    made = Catalog()
    for entry in (
        e.ClusterCreated(bytes(16), "stoker", 1),
        e.EpochBegan(7, 2),
        e.FleetSet(SPEC),
        e.SlotAdded(1, 2**30),
        e.DatasetAdded(1, "d", "file:///d", (), 1, "keep", "mem", 0, 3),
        e.ListingBegan(1, 1),
        e.DatasetListed(1, Manifested(1, 1, "00" * 32, 1, 2, 3, 2**20, 1, 1), 4),
        *entries,
    ):
        made.apply(entry)
    return made


def listing(of: Catalog, dataset_id: int) -> StartListing:
    return start_listing(of, Fleet(Settings()), of.datasets[dataset_id])


@pytest.mark.parametrize("name", ["slot_id_next", "launch_id_next", "dataset_id_next", "job_number_next"])
def test_no_id_is_used_twice(name: str) -> None:
    assert getattr(catalog(RESTORED), name) == getattr(catalog(), name) + AHEAD


@pytest.mark.parametrize("name", ["placement_version", "revision", "launch_revision"])
def test_what_others_know_by_version_is_older_than_what_they_hear_now(name: str) -> None:
    assert getattr(catalog(RESTORED), name) >= getattr(catalog(), name) + AHEAD


def test_what_was_there_stays_as_it_was() -> None:
    before, after = catalog(), catalog(RESTORED)
    assert (after.datasets, after.slots, after.fleet) == (before.datasets, before.slots, before.fleet)
    assert after.wall_ms == 99


def test_its_epoch_is_that_of_the_restored_journal() -> None:
    assert catalog(RESTORED).epoch == RESTORED.epoch


def test_the_next_version_of_a_dataset_has_addresses_of_its_own() -> None:
    """Executors may hold blocks of a version that was made after the backup, at the addresses that it would take."""
    assert listing(catalog(), 1).generation == 1
    again = listing(catalog(RESTORED), 1)
    assert (again.generation, again.version) == (AHEAD + 7, 2)


def test_the_version_after_the_next_stays_in_its_generation() -> None:
    listed = e.DatasetListed(1, Manifested(AHEAD + 7, 2, "11" * 32, 1, 2, 3, 2**20, 1, 1), 100)
    again = listing(catalog(RESTORED, e.ListingBegan(1, 2), listed), 1)
    assert (again.generation, again.version) == (AHEAD + 7, 3)


def test_a_new_dataset_begins_there_too() -> None:
    made = catalog(RESTORED)
    number = made.dataset_id_next
    made.apply(e.DatasetAdded(number, "e", "file:///e", (), 1, "keep", "mem", 0, 5))
    made.apply(e.ListingBegan(number, 1))
    assert listing(made, number).generation == AHEAD + 7 and number == 2 + AHEAD


def test_any_name_may_have_been_used_by_a_dataset_that_is_forgotten() -> None:
    assert not catalog().was_used("anything")
    assert catalog(RESTORED).was_used("anything")


def test_a_second_restore_goes_further() -> None:
    later = RESTORED._replace(generation_min=RESTORED.generation_min + 5)
    assert catalog(RESTORED, later).generation_min == AHEAD + 12
    assert catalog(later, RESTORED).generation_min == AHEAD + 12, "never back"


def test_a_snapshot_holds_it() -> None:
    made = catalog(RESTORED)
    again = decode_snapshot(encode_snapshot(made))
    assert again.snapshot() == made.snapshot() and again.generation_min == AHEAD + 7
