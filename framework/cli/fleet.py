"""`stoker fleet`: the wanted fleet, and what runs of it."""

from __future__ import annotations

from typing import Any

import click

from stoker.client.api import Client
from stoker.executor.units import format_bytes
from stoker.framework.cli.common import SIZE, api_command
from stoker.framework.cli.output import Output


@click.group()
def fleet() -> None:
    """The wanted fleet of executors, and what runs of it."""


@fleet.command("show")
@api_command
def show(client: Client, output: Output) -> None:
    """Show each wanted executor: where it runs, or why it does not."""
    view, executors = client.fleet(), client.executors()
    if output.as_json:
        output.json({"fleet": view, "executors": executors})
        return
    for line in fleet_lines(view):
        output.say(line)
    executor_table(output, executors)


def fleet_lines(view: dict[str, Any]) -> list[str]:
    """Return what is wanted, and what keeps it from being there, in lines."""
    roles = view["roles"]
    lines = [
        f"wanted: {_wanted(view)}, role{'s' if len(roles) > 1 else ''} {', '.join(roles)}; running: {view['running']}"
    ]
    if view["constraints"]:
        lines.append(f"constraints: {', '.join(view['constraints'])}")
    if view["executor"]:
        lines.append(f"executors are started from {view['executor']}")
    volumes = view["volumes"]
    counts = [f"{volumes[s]} {s}" for s in ("ready", "planned", "released", "doomed") if volumes[s]]
    if counts:
        lines.append(f"volumes: {', '.join(counts)}")
    if volumes["unknown_count"]:
        lines.append(
            f"{volumes['unknown_count']} volumes carry this cluster's labels, and its journal does not know them (is it an older "
            "one?): they are kept as they are"
        )
    if view["attention"]:
        lines.append(f"attention: {view['attention']}")
    fits = [w["nearest"] for w in view["waiting"] if w["nearest"]]
    if fits:
        nearest = fits[0]
        lacks = [check_text(c) for c in nearest["checks"] if not c["passed"]]
        lines.append(
            f"{view['waiting_count']} wait: no offer fits; nearest is agent {nearest['agent_id']} ({nearest['hostname']}), "
            f"but {'; '.join(lacks)}"
        )
    return lines


def check_text(check: dict[str, Any]) -> str:
    """Return a requirement with what was wanted and offered."""
    return f"{check['requirement']}: wanted {check['wanted']}, offered {check['offered']}"


def _wanted(view: dict[str, Any]) -> str:
    disk = f" memory and {format_bytes(view['disk_bytes'])} SSD" if view["disk_bytes"] else ""
    return f"{view['instances']} executors of {format_bytes(view['mem_bytes'])}{disk}"


def executor_table(output: Output, executors: list[dict[str, Any]]) -> None:
    """Print a row an executor: slot, state, where, how full."""
    rows = [
        [
            e["slot"],
            e["state"],
            e["agent_id"] or "-",
            f"{e['host']}:{e['port']}" if e["port"] else "-",
            e["pid"] or "-",
            f"{format_bytes(e['used_bytes'] or 0)} of {format_bytes(e['capacity_bytes'] or 0)}",
            _disk(e["disk"]),
            e["reason"] or "",
        ]
        for e in executors
    ]
    output.table("", ["SLOT>", "STATE", "AGENT", "ADDRESS", "PID>", "USED", "SSD", "REASON"], rows)
    for e in executors:
        disk = e["disk"]
        if disk and disk["is_stuck"]:
            output.say(f"slot {e['slot']}: the disk of its SSD tier does not answer; memory is served on")
        if disk and disk["error_count"]:
            output.say(f"slot {e['slot']}: {disk['error_count']} SSD errors, the last: {disk['last_error']}")


def _disk(disk: dict[str, Any] | None) -> str:
    if disk is None:
        return "-"
    return f"{format_bytes(disk['used_bytes'] or 0)} of {format_bytes(disk['capacity_bytes'] or 0)}"


@fleet.command("set")
@api_command
@click.option("--instances", type=click.IntRange(0, 10_000), help="executors wanted, one an agent")
@click.option("--mem", "mem_bytes", type=SIZE, help="MEM tier of each, such as 8GiB")
@click.option(
    "--disk",
    "disk_bytes",
    type=SIZE,
    help="SSD tier of each, on a persistent volume, such as 1TiB; 0: none. Another size destroys the volumes there are",
)
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    metavar="FIELD:OPERATOR[:VALUE]",
    help="which agents are used: FIELD is hostname, @region, @zone or an attribute, OPERATOR one of UNIQUE, CLUSTER, GROUP_BY, LIKE, "
    "UNLIKE, MAX_PER, IS, as Marathon knows them; such as rack:GROUP_BY:3. LIKE and UNLIKE take a regular expression of the whole "
    "value, without look-around and back-references. Repeatable: these replace those there are; '' "
    "is none. Executors that run stay where they are",
)
@click.option(
    "--role", "roles", multiple=True, help="Mesos role whose offers are taken; repeatable: all of them"
)
@click.option(
    "--executor",
    metavar="python:PATH or image:NAME",
    help="what executors are started from, from now on: a Python that has Stoker on every agent, or a container image; '' is "
    "what the schedulers were told (--bundle, --executor-python)",
)
def set_fleet(
    client: Client,
    output: Output,
    *,
    instances: int | None,
    mem_bytes: int | None,
    disk_bytes: int | None,
    constraints: tuple[str, ...],
    roles: tuple[str, ...],
    executor: str | None,
) -> None:
    """Change the wanted fleet; what is not named stays as it is."""
    changed = (instances, mem_bytes, disk_bytes, executor)
    if all(value is None for value in changed) and not constraints and not roles:
        raise click.UsageError(
            "nothing to change: pass --instances, --mem, --disk, --constraint, --role or --executor"
        )
    view = client.set_fleet(
        instances=instances,
        mem_bytes=mem_bytes,
        disk_bytes=disk_bytes,
        constraints=[text for text in constraints if text] if constraints else None,
        roles=list(roles) or None,
        executor=executor,
    )
    output.result(view, f"wanted: {_wanted(view)}")
