"""The leader's scratch directory: its own, whoever else is on the machine, and gone afterwards."""

from __future__ import annotations

import os
import pathlib
import tempfile

import pytest

from stoker.framework.config import Config
from stoker.framework.scratch import PREFIX, Scratch, public_path


@pytest.fixture(autouse=True)
def temporary(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_schedulers_of_one_journal_never_share_one() -> None:
    shared = Config(master="m:1", journal="zk://z:2181/stoker")
    assert shared.scratch(7070) == public_path("127.0.0.1", 7070) != shared.scratch(7071)
    assert Config(master="m:1", journal="zk://z:2181/stoker", host="::1").scratch(7070).endswith("-__1-7070")
    assert Config(master="m:1", journal="zk://z:2181/stoker", scratch_dir="/var/x").scratch(7070) == "/var/x"
    assert Config(master="m:1", journal="file:/var/lib/stoker").scratch(7070) == "/var/lib/stoker.scratch"


def test_it_is_private_and_gone_in_the_end(temporary: pathlib.Path) -> None:
    scratch = Scratch(public_path("h", 1))
    assert os.stat(scratch.path).st_mode & 0o777 == 0o700
    assert scratch.within("manifests") == os.path.join(scratch.path, "manifests")
    scratch.close()
    scratch.close()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_scheduler_left_is_removed_and_what_lives_is_not(temporary: pathlib.Path) -> None:
    (temporary / f"{PREFIX}h-1" / "manifests").mkdir(parents=True)
    (temporary / f"{PREFIX}h-1" / "manifests" / "x.manifest").write_text("of a dead one")
    (temporary / "somebody-elses").mkdir()
    (temporary / f"{PREFIX}link").symlink_to(temporary / "somebody-elses")
    living = Scratch(public_path("h", 2))
    other = Scratch(public_path("h", 3))
    left = sorted(path.name for path in temporary.iterdir())
    assert left == sorted(["somebody-elses", f"{PREFIX}link", f"{PREFIX}h-2", f"{PREFIX}h-3"])
    living.close()
    other.close()


def test_one_that_is_in_use_is_not_taken(temporary: pathlib.Path) -> None:
    living = Scratch(public_path("h", 1))
    with pytest.raises(PermissionError, match="in use"):
        Scratch(public_path("h", 1))
    assert os.path.isdir(living.path)
    living.close()
    Scratch(public_path("h", 1)).close()


def test_a_place_that_somebody_prepared_is_not_used(temporary: pathlib.Path) -> None:
    """The path can be guessed: a link there would lead us to write where its owner wants."""
    (temporary / "elsewhere").mkdir()
    os.symlink(temporary / "elsewhere", public_path("h", 1))
    with pytest.raises(PermissionError):
        Scratch(public_path("h", 1))


def test_an_operators_directory_is_used_as_it_is(temporary: pathlib.Path) -> None:
    (temporary / "mine").mkdir()
    (temporary / "mine" / "thesis.tex").write_text("")
    (temporary / f"{PREFIX}h-1").mkdir()
    scratch = Scratch(str(temporary / "mine"))
    scratch.close()
    assert (temporary / "mine" / "thesis.tex").exists() and (temporary / f"{PREFIX}h-1").exists()
