"""Listings with a child that does as it is told: bounds, replacement, errors, and what is stored before it is named."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.threadpool import ThreadPool

from stoker.executor.manifest import FileRow, build
from stoker.framework.core.actions import StartListing
from stoker.framework.core.events import ListingFinished, ListingProgressed
from stoker.framework.journaling import JournalThread
from stoker.framework.listings import LISTINGS_MAX, Listings
from stoker.framework.manifests import Manifests
from stoker.framework.metrics import Metrics
from support.greenlets import wait_until
from support.schedulers import MemoryJournal

CLUSTER = b"c" * 16

# A lister that obeys its source: "say TEXT", "exit N", "wait FILE" (until it is there), or "copy DIR" and its done.json.
CHILD = """
import json, os, shutil, sys, time
request = json.load(sys.stdin)
word, _, rest = request["source"].partition(" ")
print(json.dumps({"files": 1, "bytes": 2}), flush=True)
if word == "say":
    print(rest, flush=True)
elif word == "exit":
    sys.exit(int(rest))
elif word == "wait":
    open(os.path.join(rest, f"started-{request['dataset_id']}"), "w").close()
    while not os.path.exists(os.path.join(rest, "go")):
        time.sleep(0.01)
    print(json.dumps({"error": "went"}), flush=True)
elif word == "copy":
    for name in os.listdir(rest):
        if name != "done.json":
            shutil.copy(os.path.join(rest, name), request["out"])
    print(open(os.path.join(rest, "done.json")).read(), flush=True)
"""


class Putter:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.journal: MemoryJournal | None = None
        self.blobs_at_end: set[str] = set()

    def put(self, event: Any, *, must: bool = False) -> bool:
        self.events.append(event)
        return True

    def put_and_wait(self, event: Any) -> None:
        assert self.journal is not None
        self.blobs_at_end = set(self.journal.blobs)
        self.events.append(event)

    def spawn(self, run: Any, *arguments: Any) -> gevent.Greenlet:
        return gevent.spawn(run, *arguments)

    def ends(self) -> list[ListingFinished]:
        return [event for event in self.events if isinstance(event, ListingFinished)]


class Rig:
    def __init__(self, directory: pathlib.Path) -> None:
        self.journal = MemoryJournal()
        self.loop = Putter()
        self.loop.journal = self.journal
        self.live: set[str] = set()
        self.directory = directory
        workers, thread = ThreadPool(2), JournalThread(self.journal)
        script = directory / "child.py"
        script.write_text(CHILD)
        self.manifests = Manifests(str(directory / "manifests"), thread, workers)
        self.listings = Listings(
            self.loop,
            thread,
            self.manifests,
            cluster=lambda: CLUSTER,
            directory=str(directory / "listings"),
            live_digests=lambda: set(self.live),
            workers=workers,
            metrics=Metrics(),
            command=(sys.executable, "-S", str(script)),
        )

    def start(self, source: str, *, dataset_id: int = 1, attempt: int = 1) -> None:
        self.listings.start(StartListing(dataset_id, attempt, source, (), 1, 1, "", 1 << 20))

    def wait_ends(self, count: int) -> list[ListingFinished]:
        wait_until(lambda: len(self.loop.ends()) >= count)
        return self.loop.ends()

    def made(self, name: str, paths: list[str]) -> pathlib.Path:
        """Return a directory with a finished listing of `paths`."""
        built = build(
            [FileRow(p, 10, 0, b"") for p in paths],
            cluster=CLUSTER,
            dataset_id=1,
            generation=1,
            version=1,
            slot_bytes=1 << 20,
        )
        directory = self.directory / name
        directory.mkdir()
        for digest, data in {**built.parts, built.digest: built.root}.items():
            (directory / digest).write_bytes(data)
        fields = {
            f: getattr(built, f)
            for f in ("digest", "files", "bytes", "address_bytes", "block_bytes", "block_count", "pg_count")
        }
        (directory / "done.json").write_text(json.dumps({"done": fields | {"generation": 1, "version": 1}}))
        return directory


@pytest.fixture
def rig(tmp_path: pathlib.Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.listings.close()


def test_blobs_are_stored_before_the_listing_is_said_to_be_finished(rig: Rig) -> None:
    made = rig.made("m", ["a", "b"])
    rig.start(f"copy {made}")
    (end,) = rig.wait_ends(1)
    assert end.manifested is not None and end.manifested.files == 2
    assert rig.loop.blobs_at_end == {p.name for p in made.iterdir()} - {"done.json"}
    assert ListingProgressed(1, 1, 1, 2) in rig.loop.events


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ('say {"error": "no such bucket"}', "no such bucket"),
        ("say garbage", "garbage"),
        ("say []", "[]"),
        ('say {"done": {}}', "lacks"),
        ('say {"done": 5}', "lacks"),
        ('say {"files": null, "bytes": 1}', "null"),
        ('say {"files": 1}', "files"),
        ("exit 3", "exit code 3"),
        ("exit 0", "without a result"),
    ],
)
def test_a_listing_that_fails_says_why(rig: Rig, source: str, says: str) -> None:
    rig.start(source)
    (end,) = rig.wait_ends(1)
    assert end.manifested is None and says in end.error
    assert rig.journal.blobs == {}


def test_a_damaged_file_of_the_child_is_not_taken(rig: Rig) -> None:
    made = rig.made("m", ["a"])
    victim = next(p for p in made.iterdir() if p.name != "done.json")
    victim.write_bytes(b"other bytes")
    rig.start(f"copy {made}")
    (end,) = rig.wait_ends(1)
    assert end.manifested is None and "damaged" in end.error


def test_a_full_disk_fails_the_listing_not_the_scheduler(rig: Rig) -> None:
    from stoker.zk.errors import Unavailable

    def refuse(data: bytes) -> str:
        raise Unavailable("no space left on device")

    rig.journal.put_blob = refuse  # type: ignore[method-assign]
    rig.start(f"copy {rig.made('m', ['a'])}")
    (end,) = rig.wait_ends(1)
    assert "no space left" in end.error


def test_at_most_so_many_run_at_once_and_the_rest_follows(rig: Rig) -> None:
    for dataset_id in range(1, LISTINGS_MAX + 4):
        rig.start(f"wait {rig.directory}", dataset_id=dataset_id)
    started = lambda: {p.name for p in rig.directory.glob("started-*")}  # noqa: E731
    wait_until(lambda: len(started()) >= LISTINGS_MAX)
    gevent.sleep(0.1)
    assert started() == {f"started-{i}" for i in range(1, LISTINGS_MAX + 1)}
    (rig.directory / "go").touch()
    assert len(rig.wait_ends(LISTINGS_MAX + 3)) == LISTINGS_MAX + 3


def test_the_same_attempt_twice_is_one_listing(rig: Rig) -> None:
    """Every action may run twice."""
    rig.start(f"wait {rig.directory}")
    rig.start(f"wait {rig.directory}")
    (rig.directory / "go").touch()
    rig.wait_ends(1)
    gevent.sleep(0.1)
    assert len(rig.loop.ends()) == 1


def test_a_newer_attempt_replaces_the_one_before_silently(rig: Rig) -> None:
    rig.start(f"wait {rig.directory}")
    wait_until(lambda: (rig.directory / "started-1").exists())
    rig.start('say {"error": "second"}', attempt=2)
    (end,) = rig.wait_ends(1)
    assert (end.attempt, end.error) == (2, "second")


def test_a_stopped_listing_says_nothing_and_leaves_nothing(rig: Rig) -> None:
    rig.start(f"wait {rig.directory}")
    wait_until(lambda: (rig.directory / "started-1").exists())
    rig.listings.stop(1)
    wait_until(lambda: not os.listdir(rig.directory / "listings"))
    assert rig.loop.ends() == []


def test_a_listing_that_is_stopped_before_its_child_runs_starts_none(rig: Rig) -> None:
    rig.start(f"wait {rig.directory}")
    rig.listings.stop(1)  # its greenlet has not run yet
    wait_until(lambda: not rig.listings._greenlets)
    assert rig.loop.ends() == []


def test_an_end_that_finds_the_queue_full_is_told_later(rig: Rig) -> None:
    put, refused = rig.loop.put, []

    def refuse_once(event: Any, *, must: bool = False) -> bool:
        if isinstance(event, ListingFinished) and not refused:
            refused.append(event)
            return False
        return put(event, must=must)

    rig.loop.put = refuse_once  # type: ignore[method-assign]
    rig.start("exit 3")
    assert rig.wait_ends(1) == refused


def test_closing_ends_the_children(rig: Rig) -> None:
    rig.start(f"wait {rig.directory}")
    wait_until(lambda: (rig.directory / "started-1").exists())
    child = rig.listings._running[1].child
    rig.listings.close()
    wait_until(lambda: child.poll() is not None)
    assert not (rig.directory / "listings").exists()


def test_blobs_that_a_living_manifest_shares_are_kept(rig: Rig) -> None:
    old, new = rig.made("old", ["a"]), rig.made("new", ["a", "b"])
    digests = []
    for attempt, made in enumerate((old, new), start=1):
        rig.start(f"copy {made}", attempt=attempt)
        end = rig.wait_ends(attempt)[-1]
        assert end.manifested is not None
        digests.append(end.manifested.digest)
    rig.live = {digests[1]}
    kept = {digests[1], *rig.manifests.part_digests(digests[1])}
    rig.listings.forget_manifest(digests[0])
    wait_until(lambda: digests[0] not in rig.journal.blobs)
    assert set(rig.journal.blobs) == kept
    rig.listings.forget_manifest(digests[1])
    gevent.sleep(0.1)
    assert set(rig.journal.blobs) == kept, "it is named by the catalog: nothing of it goes"


def test_nothing_is_forgotten_while_a_living_manifest_is_missing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody deleted the root of a living one: what it shares with the one that goes is not known."""
    old, new = rig.made("old", ["a"]), rig.made("new", ["a", "b"])
    digests = []
    for attempt, made in enumerate((old, new), start=1):
        rig.start(f"copy {made}", attempt=attempt)
        end = rig.wait_ends(attempt)[-1]
        assert end.manifested is not None
        digests.append(end.manifested.digest)
    rig.live = {digests[1]}
    root = rig.journal.blobs.pop(digests[1])
    stored = set(rig.journal.blobs)
    rig.listings.forget_manifest(digests[0])
    wait_until(lambda: not rig.listings._greenlets)
    assert set(rig.journal.blobs) == stored and "no blob for 1 manifests" in caplog.text
    rig.journal.put_blob(root)
    rig.listings.forget_manifest(digests[0])
    wait_until(lambda: digests[0] not in rig.journal.blobs)
    assert set(rig.journal.blobs) == {digests[1], *rig.manifests.part_digests(digests[1])}


def test_a_sweep_deletes_what_no_manifest_needs(rig: Rig) -> None:
    """A scheduler was killed between storing and naming, or between naming no more and deleting."""
    digests = []
    for attempt, paths in enumerate((["a"], ["b", "c"]), start=1):
        rig.start(f"copy {rig.made(str(attempt), paths)}", attempt=attempt)
        end = rig.wait_ends(attempt)[-1]
        assert end.manifested is not None
        digests.append(end.manifested.digest)
    rig.live = {digests[1]}
    kept = {digests[1], *rig.manifests.part_digests(digests[1])}
    assert set(rig.journal.blobs) > kept
    rig.listings.sweep()
    wait_until(lambda: set(rig.journal.blobs) == kept)


def test_a_sweep_deletes_nothing_while_a_manifest_is_missing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.start(f"copy {rig.made('m', ['a'])}")
    rig.wait_ends(1)
    stored = set(rig.journal.blobs)
    rig.live = {"0" * 64}
    rig.listings.sweep()
    wait_until(lambda: "no blob for 1 manifests" in caplog.text)
    assert set(rig.journal.blobs) == stored
