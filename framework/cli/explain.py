"""`stoker explain`: why a block is where it is, and what became of the last offers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from stoker.client.api import Client, Dataset
from stoker.client.placement import Placement, placement_from
from stoker.executor.messages import NO_HOME
from stoker.executor.units import format_bytes
from stoker.framework.cli.common import api_command
from stoker.framework.cli.output import Output, count, fail

BLOCKS_SHOWN_MAX = 32
AGENTS_SHOWN_MAX = 20


@click.command()
@api_command
@click.argument("target", required=False, metavar="NAME[/PATH]")
@click.option("--offers", is_flag=True, help="the last offers: what was taken, what was declined, and why")
def explain(client: Client, output: Output, *, target: str | None, offers: bool) -> None:
    """Say why: where a dataset's or a file's blocks belong, or what became of offers."""
    if offers and target:
        raise click.UsageError(f"either --offers or {target!r}, not both")
    if offers:
        _explain_offers(client, output)
        return
    if not target:
        raise click.UsageError("name what to explain: NAME, NAME/PATH or --offers")
    name, _, path = target.removeprefix("stoker://").partition("/")
    _explain_blocks(client, output, name, path)


def offer_rows(offers: list[dict[str, Any]], *, wall_ms: int) -> list[list[Any]]:
    """Return a row an offer decision, in the order given."""
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
    checked = latest_checks(offers)
    if checked:
        rows = [row for offer in checked[:AGENTS_SHOWN_MAX] for row in check_rows(offer)]
        output.table("requirement by requirement, of each agent's newest offer", CHECK_COLUMNS, rows)
    if len(checked) > AGENTS_SHOWN_MAX:
        output.say(f"and {len(checked) - AGENTS_SHOWN_MAX:,} more agents (--json shows all)")


CHECK_COLUMNS = ["AGENT", "DECISION", "REQUIREMENT", "", "WANTED", "OFFERED"]


def latest_checks(offers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each agent and role the newest offer that was checked; what came nearest to an executor first."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for offer in offers:
        if offer["checks"]:
            newest.setdefault((offer["agent_id"], offer["role"]), offer)
    return sorted(newest.values(), key=lambda offer: sum(not check["passed"] for check in offer["checks"]))


def check_rows(offer: Mapping[str, Any]) -> list[list[Any]]:
    """Return a row a requirement; the agent stands in the first."""
    return [
        [
            f"{offer['agent_id']} ({offer['hostname']})" if index == 0 else "",
            offer["decision"] if index == 0 else "",
            check["requirement"],
            "PASS" if check["passed"] else "FAIL",
            check["wanted"],
            check["offered"],
        ]
        for index, check in enumerate(offer["checks"])
    ]


def _explain_blocks(client: Client, output: Output, name: str, path: str) -> None:
    info, placed = client.dataset_info(name), placement_from(client.placement(name))
    dataset = client.dataset(name)
    try:
        indexes = dataset.blocks(path)
    except FileNotFoundError:
        fail(f"dataset {name} has nothing at {path!r}", f"paths are relative to its source {info['source']}")
    executors = {e["slot"]: e for e in client.executors()}
    blocks = [_block(index, placed, executors) for index in indexes]
    extent = dataset.extent(path) if path in dataset.paths else None
    if output.as_json:
        about = {"dataset": dataset.name, "version": dataset.version, "path": path, "wanted": info["wanted"]}
        where = None if extent is None else {"offset": extent[0], "bytes": extent[1]}
        output.json({**about, "block_bytes": dataset.block_bytes, "extent": where, "blocks": blocks})
        return
    for line in _about(dataset, info, placed, path, extent):
        output.say(line)
    rows = [
        [b["block"], b["placement_group"], _homes_text(b["homes"]), b["reason"]]
        for b in blocks[:BLOCKS_SHOWN_MAX]
    ]
    output.table("", ["BLOCK>", "PG>", "HOMES", "REASON"], rows)
    if len(blocks) > BLOCKS_SHOWN_MAX:
        output.say(f"and {len(blocks) - BLOCKS_SHOWN_MAX:,} more blocks (--json shows all)")


def _about(
    dataset: Dataset, info: Mapping[str, Any], placed: Placement, path: str, extent: tuple[int, int] | None
) -> list[str]:
    """Return the lines above the table: how the dataset, or the file, lies in blocks, and what is wanted of it."""
    lines = [
        f"{dataset.name}: version {dataset.version}, {count(len(dataset), 'file')} in {count(info['blocks'], 'block')} of "
        f"{format_bytes(dataset.block_bytes)}; {info['cached_ratio'] or 0:.0%} cached; {wanted_text(info['wanted'])}",
        f"a block's placement group (PG) is its number modulo {placed.pg_count}; each PG has {count(info['replicas'], 'home')}, "
        "found by hashing over the slots, weighted by their memory",
    ]
    if extent is not None:
        lines.append(f"{path}: {extent[1]:,} bytes from address {extent[0]:,} on")
    return lines


def wanted_text(rules: Sequence[Mapping[str, Any]]) -> str:
    """Return in words what the wanted rules of a dataset's view say."""
    if not rules:
        return "nothing of it is wanted: what readers bring in is kept while there is room"
    words = [("" if r["include"] else "not ") + (r["path"] or "all of it") for r in rules]
    return "wanted: " + ", ".join(words)


def _block(index: int, placed: Placement, executors: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    group = index % placed.pg_count
    positions = [p for p in placed.homes[:, group].tolist() if p != NO_HOME and p < len(placed.slots)]
    homes = [_home(placed.slots[p].slot_id, executors) for p in positions]
    return {
        "block": index,
        "placement_group": group,
        "homes": homes,
        "reason": _reason(homes, len(placed.homes)),
    }


def _home(slot_id: int, executors: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of a home's executor; `executors` was asked for a moment later than the placement."""
    executor = executors.get(slot_id)
    if executor is None:
        return {"slot": slot_id, "state": "GONE", "host": None, "port": None, "reason": "the fleet shrank"}
    return {"slot": slot_id, **{key: executor[key] for key in ("state", "host", "port", "reason")}}


def _homes_text(homes: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"slot {h['slot']} ({h['host']}:{h['port']})" if h["port"] else f"slot {h['slot']} ({h['state']})"
        for h in homes
    )


def _reason(homes: Sequence[Mapping[str, Any]], replicas: int) -> str:
    """Return who answers for a block with these homes, and what is wrong with the others."""
    running = [h for h in homes if h["state"] == "RUNNING"]
    parts = []
    if running:
        copies = ", ".join(f"slot {h['slot']}" for h in running[1:])
        parts.append(f"slot {running[0]['slot']} fills it from the under store")
        parts += [f"{copies} from there"] if copies else []
    else:
        parts.append("no home runs: any living executor reads it through")
    parts += [
        f"slot {h['slot']} is {h['state']}" + (f" ({h['reason']})" if h["reason"] else "")
        for h in homes
        if h["state"] != "RUNNING"
    ]
    if len(homes) < replicas:
        parts.append(f"{len(homes)} of {replicas} replicas: there are no more slots")
    return "; ".join(parts)
