"""What a leadership leaves behind, and what it says when it cannot begin."""

from __future__ import annotations

import pathlib

import pytest

from stoker.zk.errors import Unavailable
from support.greenlets import wait_until
from support.schedulers import InProcess, MemoryJournal


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
