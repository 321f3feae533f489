"""What a leadership leaves behind, and what it says when it cannot begin."""

from __future__ import annotations

import pathlib

import pytest

from stoker.framework import leadership as leadership_module
from stoker.framework.core import silence as silence_module
from stoker.framework.core.entries import LaunchPlanned
from stoker.framework.core.events import HeartbeatReceived
from stoker.zk.errors import Unavailable
from support.core_stage import heartbeat_of
from support.greenlets import wait_until
from support.schedulers import InProcess, MemoryJournal

LOST = LaunchPlanned(31, 2, "stoker-00-e4-s2-l31", "a", "h", 31000, "s", 64 << 20, 100, 4, 1)


def test_it_removes_its_scratch_files_and_nobody_elses(tmp_path: pathlib.Path) -> None:
    scratch = tmp_path / "scratch"
    scheduler = InProcess(MemoryJournal(), scratch)
    scheduler.lead()
    assert {path.name for path in scratch.iterdir()} == {"manifests", "listings"}
    scheduler.close()
    assert not scratch.exists()
    scratch.mkdir()
    (scratch / "thesis.tex").write_text("the operator named a directory that is in use")
    scheduler.lead()
    scheduler.close()
    assert [path.name for path in scratch.iterdir()] == ["thesis.tex"]


def test_scratch_that_cannot_be_made_is_told_as_a_full_journal_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "scratch").write_text("a file stands in the way")
    scheduler = InProcess(MemoryJournal(), tmp_path / "scratch")
    with pytest.raises(Unavailable, match="scratch: Not a directory"):
        scheduler.lead()


def test_it_sweeps_blobs_that_no_manifest_needs(tmp_path: pathlib.Path) -> None:
    """A scheduler was killed after it stored them, and before it journaled what they are for."""
    journal = MemoryJournal()
    digest = journal.put_blob(b"of a listing that was cut off")
    scheduler = InProcess(journal, tmp_path / "scratch")
    scheduler.lead()
    wait_until(lambda: digest not in journal.blobs)
    scheduler.close()


def test_it_tells_the_operator_that_its_journal_is_an_older_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An older disk was put in ZooKeeper's place: executors know of what this journal never heard."""
    monkeypatch.setattr(leadership_module, "NEWER_LOOK_INTERVAL_MS", 10)
    scheduler = InProcess(MemoryJournal(), tmp_path / "scratch")
    scheduler.lead()
    try:
        before = scheduler.leadership.leader_view()
        cluster = bytes.fromhex(before["cluster"])
        heartbeat = heartbeat_of(LOST, 1, epoch_seen=5, cluster=cluster)
        answer = scheduler.loop.ask(lambda reply_id: HeartbeatReceived(heartbeat, reply_id))
        proof = "an executor is of launch 31, this journal knows none after 0"
        assert (answer.status, before["reason"]) == ("unknown", "")
        assert scheduler.leadership.leader_view()["reason"].startswith(proof)
        wait_until(lambda: proof in caplog.text, "the log to say it")
    finally:
        scheduler.close()


def test_it_tells_the_operator_that_no_executor_reaches_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leadership_module, "UNFIT_LOOK_INTERVAL_MS", 10)
    scheduler = InProcess(MemoryJournal(), tmp_path / "scratch")
    scheduler.lead()
    try:
        assert scheduler.leadership.leader_view()["reason"] == ""
        said = "5 of 5 executors are silent at once"
        monkeypatch.setattr(silence_module, "mass_silence", lambda *_: said)
        wait_until(lambda: scheduler.leadership.leader_view()["reason"].startswith(said), "the reason")
        assert "--advertise" in scheduler.leadership.leader_view()["reason"]
        wait_until(lambda: said in caplog.text, "the log to say it")
        monkeypatch.setattr(silence_module, "mass_silence", lambda *_: "6 of 6")
        wait_until(lambda: scheduler.leadership.leader_view()["reason"].startswith("6 of 6"), "another")
        assert caplog.text.count("are silent at once") == 1 and "6 of 6" not in caplog.text
    finally:
        scheduler.close()
