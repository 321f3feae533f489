"""Mapped manifests on the scheduler: made once, kept in bounds, made again, never from bad blobs."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import gevent
import pytest
from gevent.threadpool import ThreadPool

from stoker.executor.manifest import BuiltManifest, FileRow, build
from stoker.framework import manifests as manifests_module
from stoker.framework.errors import Refused
from stoker.framework.journaling import JournalThread
from stoker.framework.manifests import Manifests
from support.greenlets import join
from support.schedulers import MemoryJournal


class CountingJournal(MemoryJournal):
    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def get_blob(self, digest: str) -> bytes | None:
        self.reads += 1
        return super().get_blob(digest)

    def keep(self, *paths: str) -> BuiltManifest:
        rows = [FileRow(path, 1000, 0, b"") for path in paths]
        built = build(rows, cluster=b"c" * 16, dataset_id=1, generation=1, version=1, slot_bytes=1 << 20)
        self.blobs |= {**built.parts, built.digest: built.root}
        return built


@pytest.fixture
def journal() -> CountingJournal:
    return CountingJournal()


@pytest.fixture
def manifests(journal: CountingJournal, tmp_path: pathlib.Path) -> Manifests:
    return Manifests(str(tmp_path / "manifests"), JournalThread(journal), ThreadPool(2))


def test_many_who_ask_at_once_share_one(journal: CountingJournal, manifests: Manifests) -> None:
    digest = journal.keep("a", "dir/b").digest
    asked = [gevent.spawn(manifests.open, digest) for _ in range(10)]
    assert len({id(manifest) for manifest in join(asked)}) == 1
    assert journal.reads == 2, "the root and its part, once"


def test_only_so_many_stay_mapped(
    journal: CountingJournal, manifests: Manifests, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests_module, "MAPPED_MAX", 2)
    digests = [journal.keep(name).digest for name in "abc"]
    held = [manifests.open(digest) for digest in digests]
    assert sorted(os.listdir(tmp_path / "manifests")) == sorted(f"{d}.manifest" for d in digests[1:])
    assert held[0].path(0) == "a", "whoever holds it goes on reading"
    assert manifests.open(digests[0]).path(0) == "a", "and it can be made again"


@pytest.mark.parametrize("damage", ["missing root", "missing part", "other bytes"])
def test_blobs_that_are_not_right_are_refused(
    journal: CountingJournal, manifests: Manifests, damage: str
) -> None:
    built = journal.keep("a")
    (part,) = built.parts
    if damage == "missing root":
        del journal.blobs[built.digest]
    elif damage == "missing part":
        del journal.blobs[part]
    else:
        journal.blobs[part] = b"other bytes"
    with pytest.raises(Refused) as caught:
        manifests.open(built.digest)
    assert caught.value.refusal.code == "manifest_lost"
    assert "journal restore" in caught.value.refusal.hint


def test_a_damaged_mapped_file_is_made_again(journal: CountingJournal, manifests: Manifests) -> None:
    digest = journal.keep("a").digest
    pathlib.Path(manifests.path(digest)).write_bytes(b"half")
    assert manifests.open(digest).path(0) == "a"


def select(manifests: Manifests, digest: str, kind: str, *paths: str, rules: Any = ()) -> Any:
    return manifests.select(digest, dataset_id=1, kind=kind, paths=paths, rules=rules, wanted_version=4)


def test_a_selection_counts_what_was_asked_and_what_will_be_wanted(
    journal: CountingJournal, manifests: Manifests
) -> None:
    digest = journal.keep("a", "dir/b", "dir/c").digest
    selection = select(manifests, digest, "load", "dir", "nope", "di")
    assert (selection.requested_files, selection.requested_bytes) == (2, 2000)
    assert selection.missing == ("nope", "di")
    assert selection.wanted_version == 4 and selection.version == 1
    everything = select(manifests, digest, "load")
    assert everything.rules == ((True, ""),) and everything.requested_files == 3
    freed = select(manifests, digest, "free", rules=((True, ""),))
    assert freed.rules == ((False, ""),) and not any(freed.wanted_blocks) and any(freed.requested_blocks)
