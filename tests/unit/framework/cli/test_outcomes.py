"""What the CLI prints of jobs and datasets while something of them is not known yet."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.framework.cli.datasets import _row
from stoker.framework.cli.jobs import _print_outcome
from stoker.framework.cli.output import Output

PROGRESS = {"bytes": 1024, "bytes_total": 4096, "files": 1, "files_total": 4}


def job(**fields: Any) -> dict[str, Any]:
    view = {"id": "j1", "kind": "load", "dataset": "d", "state": "RUNNING", "progress": PROGRESS}
    return view | {"created_ms": 5_000, "finished_ms": None, "errors": [], "error_count": 0} | fields


def test_a_job_that_runs_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    _print_outcome(Output(), job())
    assert capsys.readouterr().out == "job j1: load d RUNNING, 1.0 KiB of 4.0 KiB, 1 of 4 files\n"


def test_a_job_that_is_over_shows_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    _print_outcome(Output(), job(state="SUCCEEDED", finished_ms=7_500))
    assert capsys.readouterr().out == "job j1: load d SUCCEEDED, 1 files, 1.0 KiB in 2.5 s\n"


def test_a_dataset_that_is_being_listed_has_dashes_for_what_is_not_known() -> None:
    unknown = dict.fromkeys(("files", "bytes", "cached_ratio", "replicas_actual", "version"))
    view = {"name": "d", "state": "LISTING", "replicas": 2, "source": "s3://b", **unknown}
    assert _row(view) == ["d", "LISTING", "-", "-", "-", "-/2", "-", "s3://b"]
