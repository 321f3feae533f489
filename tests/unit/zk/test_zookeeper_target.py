"""A restore where somebody has deleted a part of the journal."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from stoker.zk.codec import Term
from stoker.zk.errors import Corrupt, Incomplete, Locked
from stoker.zk.home import Snapshot
from stoker.zk.paths import ZkUrl, parse_journal_url
from stoker.zk.zookeeper_target import ZooKeeperTarget
from support.disks import Killed
from support.journals import replay, shared_client
from support.onlookers import PLACES, Place, looking, make_place
from support.zookeeper import WHY_NOT

pytestmark = pytest.mark.skipif("zookeeper" not in PLACES, reason=WHY_NOT)
AHEAD = 1_000


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[Place]:
    yield from make_place("zookeeper", tmp_path)


def live(place: Place) -> None:
    for first_index in (0, 1):
        journal = place.leader()
        journal.lead()
        journal.append(first_index, [b"old"])
        journal.put_blob(b"old blob")
        journal.close()


def delete(place: Place, part: str) -> None:
    root = place.url.partition("//")[2].partition("/")[2]
    shared_client().delete(f"/{root}/{part}", recursive=True)


def put(place: Place, *, overwrite: bool) -> int:
    where = parse_journal_url(place.url)
    assert isinstance(where, ZkUrl)
    target = ZooKeeperTarget(where, owner="restorer", members_wait_ms=300)
    try:
        epoch = max(1, target.open(overwrite=overwrite)) + AHEAD
        target.commit(Snapshot(7, b"saved"), Term(epoch, 1, "who led"))
        return epoch
    finally:
        target.close()


@pytest.mark.parametrize("part", ["schema", "election", "epoch", "log", "snapshot", "snapshots", "blobs"])
def test_what_was_deleted_is_made_again_when_a_backup_is_restored_over_it(place: Place, part: str) -> None:
    live(place)
    delete(place, part)
    with pytest.raises(Incomplete, match="a part of the journal was deleted.*restore --overwrite"):
        put(place, overwrite=False)
    assert put(place, overwrite=True) == 2 + AHEAD, "above the epochs that were there"
    journal = place.leader()
    found = journal.lead()
    assert (found.epoch, found.snapshot, replay(found)) == (2 + AHEAD + 1, b"saved", [])
    assert journal.blob_digests() == []
    journal.close()


def test_a_log_that_a_restore_began_to_delete_says_so_and_not_that_a_record_is_missing(place: Place) -> None:
    live(place)
    where = parse_journal_url(place.url)
    assert isinstance(where, ZkUrl)
    target = ZooKeeperTarget(where, owner="restorer", members_wait_ms=300)

    def delete_one(paths: list[str]) -> None:
        target._write(("delete", (paths[0],)))
        raise Killed

    target._delete = delete_one  # type: ignore[method-assign]
    with pytest.raises(Killed):
        target.open(overwrite=True)
    target.close()
    for _ in range(2):
        journal = place.leader()
        with pytest.raises(Corrupt, match="was not finished: run `stoker journal restore` again"):
            journal.lead()
        journal.close()
    assert put(place, overwrite=False) == 2 + AHEAD


def test_a_living_leader_is_not_deposed_by_a_restore_over_a_journal_that_is_not_whole(place: Place) -> None:
    journal = place.leader()
    journal.lead()
    journal.append(0, [b"one"])
    delete(place, "blobs")
    with pytest.raises(Locked, match="schedulers are there"):
        put(place, overwrite=True)
    journal.append(1, [b"two"])
    journal.close()


@pytest.mark.parametrize("damage", ["log", "epoch"])
def test_damage_beside_what_was_deleted_is_written_over_too(place: Place, damage: str) -> None:
    live(place)
    delete(place, "blobs")
    client, root = shared_client(), "/" + place.url.partition("//")[2].partition("/")[2]
    path = f"{root}/epoch" if damage == "epoch" else f"{root}/log/{max(client.get_children(f'{root}/log'))}"
    client.set(path, b"damaged")
    assert put(place, overwrite=True) >= 1 + AHEAD
    assert place.leader().lead().snapshot == b"saved"


def test_the_onlooker_says_what_was_deleted_and_reads_what_it_can(place: Place) -> None:
    live(place)
    delete(place, "election")
    assert looking(place, lambda reader: reader.header().next_index) == 2
    delete(place, "epoch")
    with pytest.raises(Corrupt, match="epoch was deleted"):
        looking(place, lambda reader: reader.header())
