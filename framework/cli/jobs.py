"""`stoker load`, `stoker free` and `stoker job`: asynchronous work and its account."""

from __future__ import annotations

import time
from typing import Any

import click

from stoker.client.api import Client
from stoker.executor.units import format_bytes
from stoker.framework.cli.common import api_command
from stoker.framework.cli.output import JobProgress, Output, fail, progress_detail

POLL_INTERVAL_S = 0.2
ERRORS_SHOWN_MAX = 20
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")


@click.command("load")
@api_command
@click.argument("name")
@click.argument("paths", nargs=-1)
@click.option(
    "--wait", is_flag=True, help="wait for the end, with a progress bar; Ctrl-C detaches, it does not cancel"
)
@click.option("--plan", is_flag=True, help="say what it would take, and whether it fits; load nothing")
@click.option("--fit", is_flag=True, help="if not all of it fits, load what does")
def load(
    client: Client, output: Output, *, name: str, paths: tuple[str, ...], wait: bool, plan: bool, fit: bool
) -> None:
    """Bring dataset NAME (or only PATHS of it) into the cache, and keep it there."""
    if plan:
        _show_plan(output, client.create_job("load", name, paths or None, fit=fit, plan=True)["plan"])
        return
    _run(client, output, client.create_job("load", name, paths or None, fit=fit), wait=wait)


@click.command("free")
@api_command
@click.argument("name")
@click.argument("paths", nargs=-1)
@click.option("--wait", is_flag=True, help="wait until the bytes are released")
def free(client: Client, output: Output, *, name: str, paths: tuple[str, ...], wait: bool) -> None:
    """Free the cache of dataset NAME (or only PATHS of it). The under store is never touched."""
    _run(client, output, client.create_job("free", name, paths or None), wait=wait)


def _show_plan(output: Output, plan: dict[str, Any]) -> None:
    if output.as_json:
        output.json(plan)
    else:
        output.say(f"{plan['files']:,} files, {format_bytes(plan['bytes'])}, {plan['blocks']:,} blocks")
        rows = [[s["slot"], format_bytes(s["bytes"]), format_bytes(s["free_bytes"])] for s in plan["slots"]]
        output.table("", ["SLOT", "BYTES>", "FREE>"], rows)
        output.say("it fits" if plan["fits"] else f"it does not fit: {plan['reason']}")
    if not plan["fits"]:
        raise SystemExit(1)


def _run(client: Client, output: Output, job: dict[str, Any], *, wait: bool) -> None:
    if wait:
        finish(client, output, job)
    else:
        output.result(
            job,
            f"job {job['id']}: {job['kind']} {subject(job)} {job['state']}; follow it with `stoker job wait {job['id']}`",
        )


def subject(job: dict[str, Any]) -> str:
    """Return what the job is about: its dataset, or the agent that it drains."""
    return str(job["dataset"] or job["agent"])


def finish(client: Client, output: Output, job: dict[str, Any]) -> dict[str, Any]:
    """Wait for a job's end with progress, print its outcome, and exit with 1 if it did not succeed."""
    job = follow(client, output, job)
    if output.as_json:
        output.json(job)
    else:
        _print_outcome(output, job)
    if job["state"] != "SUCCEEDED":
        fail(
            f"job {job['id']} {job['state']}: {job['message'] or 'see its errors above'}",
            f"stoker job show {job['id']}",
        )
    return job


def follow(client: Client, output: Output, job: dict[str, Any]) -> dict[str, Any]:
    """Return the job's view once it is final; progress meanwhile."""
    bar = JobProgress(output, f"{job['kind']} {subject(job)}")
    try:
        while True:
            progress, final = job["progress"], job["state"] in FINAL
            bar.update(
                progress["bytes"] or 0,
                progress["bytes_total"] or 0,
                progress_detail(progress),
                now_ms=time.monotonic_ns() // 1_000_000,
                final=final,
            )
            if final:
                return job
            time.sleep(POLL_INTERVAL_S)
            job = client.job(job["id"])
    except KeyboardInterrupt:
        bar.close()
        fail(
            f"detached; job {job['id']} goes on",
            f"stoker job wait {job['id']}, or stoker job cancel {job['id']}",
        )
    finally:
        bar.close()


def _print_outcome(output: Output, job: dict[str, Any]) -> None:
    progress = job["progress"]
    what = f"job {job['id']}: {job['kind']} {subject(job)} {job['state']}"
    if job["finished_ms"] is None:
        output.say(f"{what}, {progress_detail(progress)}")
    else:
        took_s = (job["finished_ms"] - job["created_ms"]) / 1000
        done = f"{progress['files'] or 0:,} files, {format_bytes(progress['bytes'] or 0)}"
        output.say(f"{what}, {done} in {took_s:.1f} s")
    errors = job["errors"][:ERRORS_SHOWN_MAX]
    if errors:
        output.table("", ["PATH", "CODE", "MESSAGE"], [[e["path"], e["code"], e["message"]] for e in errors])
    if job["error_count"] > len(errors):
        output.say(f"and {job['error_count'] - len(errors):,} more files")


@click.group()
def job() -> None:
    """Jobs: the accounts of load, free and the rest."""


@job.command("ls")
@api_command
def list_jobs(client: Client, output: Output) -> None:
    """List jobs, newest last."""
    jobs = client.jobs()
    if output.as_json:
        output.json({"jobs": jobs})
        return
    rows = [
        [j["id"], j["kind"], subject(j), j["state"], progress_detail(j["progress"]), j["error_count"]]
        for j in jobs
    ]
    output.table("", ["ID", "KIND", "DATASET", "STATE", "PROGRESS", "ERRORS>"], rows)


@job.command("show")
@api_command
@click.argument("job_id")
def show(client: Client, output: Output, *, job_id: str) -> None:
    """Show one job."""
    view = client.job(job_id)
    if output.as_json:
        output.json(view)
        return
    _print_outcome(output, view)
    if view["message"]:
        output.say(view["message"])


@job.command("cancel")
@api_command
@click.argument("job_id")
def cancel(client: Client, output: Output, *, job_id: str) -> None:
    """Cancel a job; what it brought in so far stays cached."""
    view = client.cancel_job(job_id)
    output.result(view, f"job {view['id']} {view['state']}")


@job.command("wait")
@api_command
@click.argument("job_id")
def wait_for(client: Client, output: Output, *, job_id: str) -> None:
    """Wait for a job's end; exit 0 only if it succeeded."""
    finish(client, output, client.job(job_id))
