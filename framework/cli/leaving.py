"""`stoker drain` and `stoker uninstall`: agents, and whole clusters, that leave without losing what they should not."""

from __future__ import annotations

import time
from typing import Any

import click

from stoker.client.api import Client
from stoker.client.errors import ApiError
from stoker.framework.cli.common import api_command
from stoker.framework.cli.jobs import finish
from stoker.framework.cli.output import Output, fail

POLL_INTERVAL_S = 0.5
GONE_S = 5.0  # a scheduler that has uninstalled its cluster ends soon after it said so
AWAY_S = 30.0  # else one starts again, or another takes over once the session of the last is over


@click.command("drain")
@api_command
@click.argument("agent")
@click.option(
    "--wait", is_flag=True, help="wait for the end, with a progress bar; Ctrl-C detaches, it does not cancel"
)
@click.option("--undo", is_flag=True, help="let the agent be used again")
def drain(client: Client, output: Output, *, agent: str, wait: bool, undo: bool) -> None:
    """Empty AGENT (its Mesos id, or its hostname): what only its executor holds moves to others, then the executor ends.

    Nothing is launched on the agent until the drain is undone. Where the rest of the fleet has no room for what only it
    holds, the job fails, says what does not fit, and everything stays where it is.
    """
    if undo:
        if wait:
            raise click.UsageError("--undo is done at once: leave --wait out")
        view = client.undo_drain(agent)
        output.result(view, f"agent {view['id']} ({view['hostname']}) may be used again")
        return
    job = client.drain(agent)
    if wait:
        finish(client, output, job)
    else:
        output.result(
            job,
            f"job {job['id']}: drain {job['agent']} {job['state']}; follow it with `stoker job wait {job['id']}`",
        )


@click.command("uninstall")
@api_command
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--keep-volumes", is_flag=True, help="leave persistent volumes, and their data, where they are")
def uninstall(client: Client, output: Output, *, yes: bool, keep_volumes: bool) -> None:
    """End everything that this cluster has on Mesos: executors, volumes and reservations, then the framework itself.

    Under stores and other frameworks' things are not touched, and the journal stays, to be read. Agents that are away
    are waited for, but not for ever: what was not reached is named at the end. The schedulers end with it.
    """
    leader = client.leader()
    if not yes:
        volumes = "kept" if keep_volumes else "destroyed, with all cached data on them"
        executors = sum(1 for row in client.executors() if row["launch"] is not None)
        question = f"End cluster {leader['name']} ({leader['cluster']}) with its {executors} executors? Volumes are {volumes}"
        if not click.confirm(question, err=True):
            fail("nothing was changed")
    view = client.uninstall(keep_volumes=keep_volumes)
    _report(output, _follow(client, output, view))


def _follow(client: Client, output: Output, view: dict[str, Any]) -> dict[str, Any]:
    """Return what the uninstall came to; tell its steps meanwhile."""
    told, silent_since = "", 0.0
    while view["state"] != "FINISHED":
        text = f"{view['state']}: {view['executors_left']} executors, {view['volumes_left']} volumes left"
        if text != told and not output.as_json:
            click.echo(text, err=True)
        told = text
        time.sleep(POLL_INTERVAL_S)
        try:
            view, silent_since = client.uninstall_state(), 0.0
        except (ApiError, OSError) as error:
            code = error.code if isinstance(error, ApiError) else "unreachable"
            if code not in ("unreachable", "not_leading"):
                raise
            # Its last word may have come while we slept: then no scheduler is there any more.
            is_gone = code == "unreachable" and view["state"] == "TEARING_DOWN"
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since < (GONE_S if is_gone else AWAY_S):
                continue
            if is_gone:
                return view
            raise
    return view


def _report(output: Output, view: dict[str, Any]) -> None:
    if output.as_json:
        output.json(view)
    else:
        output.say(
            "the cluster is uninstalled" if view["state"] == "FINISHED" else "the framework was torn down"
        )
        for text in view["left"]:
            output.say(f"left behind: {text}")
    if view["left"]:
        fail(
            f"{len(view['left'])} things were not reached in time, see above",
            "Mesos ends executors when their agents come back; volumes keep the labels stoker_cluster and stoker_volume, "
            "an operator can destroy them",
        )
