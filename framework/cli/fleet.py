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
    output.say(
        f"wanted: {view['instances']} executors of {format_bytes(view['mem_bytes'])}, role {view['role']}; running: {view['running']}"
    )
    executor_table(output, executors)


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
            e["reason"] or "",
        ]
        for e in executors
    ]
    output.table("", ["SLOT>", "STATE", "AGENT", "ADDRESS", "PID>", "USED", "REASON"], rows)


@fleet.command("set")
@api_command
@click.option("--instances", type=click.IntRange(0, 10_000), help="executors wanted, one an agent")
@click.option("--mem", "mem_bytes", type=SIZE, help="MEM tier of each, such as 8GiB")
def set_fleet(client: Client, output: Output, *, instances: int | None, mem_bytes: int | None) -> None:
    """Change the wanted fleet."""
    if instances is None and mem_bytes is None:
        raise click.UsageError("nothing to change: pass --instances or --mem")
    view = client.set_fleet(instances=instances, mem_bytes=mem_bytes)
    output.result(view, f"wanted: {view['instances']} executors of {format_bytes(view['mem_bytes'])}")
