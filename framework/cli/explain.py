"""`stoker explain`: why a block is where it is, and what became of the last offers."""

from __future__ import annotations

import time
from typing import Any

import click

from stoker.client.api import Client
from stoker.executor.units import format_bytes
from stoker.framework.cli.common import api_command
from stoker.framework.cli.output import Output, fail

BLOCKS_SHOWN_MAX = 32


@click.command()
@api_command
@click.argument("target", required=False, metavar="NAME[/PATH]")
@click.option("--offers", is_flag=True, help="the last offers: what was taken, what was declined, and why")
def explain(client: Client, output: Output, *, target: str | None, offers: bool) -> None:
    """Say why: where a dataset's or a file's blocks belong, or what became of offers."""
    if offers:
        _explain_offers(client, output)
        return
    if not target:
        raise click.UsageError("name what to explain: NAME, NAME/PATH or --offers")
    name, _, path = target.partition("/")
    _explain_blocks(client, output, name, path)


def offer_rows(offers: list[dict[str, Any]], *, wall_ms: int) -> list[list[Any]]:
    """Return a row an offer decision, newest last."""
    return [
        [
            f"{max(0, wall_ms - o['wall_ms']) / 1000:.0f} s ago",
            o["agent_id"],
            o["hostname"],
            o["cpus"],
            format_bytes(o["mem_bytes"]),
            o["decision"],
            o["reason"],
        ]
        for o in offers
    ]


OFFER_COLUMNS = ["WHEN", "AGENT", "HOST", "CPUS>", "MEM>", "DECISION", "REASON"]


def _explain_offers(client: Client, output: Output) -> None:
    offers = client.offers()
    if output.as_json:
        output.json({"offers": offers})
        return
    output.table("", OFFER_COLUMNS, offer_rows(offers, wall_ms=int(time.time() * 1000)))


def _explain_blocks(client: Client, output: Output, name: str, path: str) -> None:
    placed = client.dataset(name)
    blocks = placed.explain(path)
    if not blocks and path:
        fail(
            f"dataset {name} has no file {path}",
            f"fsspec.open('stoker://{name}/...') takes the paths of `find`",
        )
    if output.as_json:
        output.json({"dataset": name, "path": path, "blocks": blocks})
        return
    rows = [
        [
            b["block"],
            b["placement_group"],
            ", ".join(f"slot {h['slot']} ({h['host']}:{h['port']})" for h in b["homes"]),
            b["reason"],
        ]
        for b in blocks[:BLOCKS_SHOWN_MAX]
    ]
    output.table("", ["BLOCK>", "PG>", "HOMES", "REASON"], rows)
    if len(blocks) > BLOCKS_SHOWN_MAX:
        output.say(f"and {len(blocks) - BLOCKS_SHOWN_MAX:,} more blocks (--json shows all)")
