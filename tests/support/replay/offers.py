"""Offers of one agent together: how many there are of it is decided by when the allocator's tick falls."""

from __future__ import annotations

import json
from collections.abc import Iterable

from support.replay.recording import Message
from support.replay.wire import Arrived


def by_agent(offers: list[Arrived]) -> Iterable[list[Arrived]]:
    """Group the offers of one agent and role."""
    groups: dict[tuple[str, str], list[Arrived]] = {}
    for arrived in offers:
        offer = arrived.event
        role = offer.get("allocation_info", {}).get("role", "*")
        groups.setdefault((offer["agent_id"]["value"], role), []).append(arrived)
    return groups.values()


def merge(groups: Iterable[list[Arrived]]) -> list[Message]:
    """Return an offer for each group: all that its offers hold together."""
    return [_sum([arrived.event for arrived in group]) for group in groups]


def _sum(offers: list[Message]) -> Message:
    if len(offers) == 1:
        return offers[0]
    amounts: dict[str, Message] = {}
    for resource in (item for offer in offers for item in offer["resources"]):
        kind = json.dumps({key: value for key, value in resource.items() if key not in ("scalar", "ranges")})
        if kind not in amounts or "volume" in str(resource.get("disk")):
            amounts[kind if kind not in amounts else f"{kind} {len(amounts)}"] = json.loads(
                json.dumps(resource)
            )
        elif "scalar" in resource:
            known = amounts[kind]["scalar"]
            known["value"] = round(known["value"] + resource["scalar"]["value"], 3)
        else:
            amounts[kind]["ranges"] = {"range": _joined(amounts[kind], resource)}
    last = offers[-1]  # which executors there were is told by the last one
    whole = {key: value for key, value in offers[0].items() if key != "executor_ids"}
    executors = {"executor_ids": last["executor_ids"]} if "executor_ids" in last else {}
    return whole | {"resources": list(amounts.values())} | executors


def _joined(*resources: Message) -> list[Message]:
    """Return the ranges of several resources, in order, with no gap that is none."""
    result: list[Message] = []
    spans = sorted((item["begin"], item["end"]) for one in resources for item in one["ranges"]["range"])
    for begin, end in spans:
        if result and begin <= result[-1]["end"] + 1:
            result[-1]["end"] = max(end, result[-1]["end"])
        else:
            result.append({"begin": begin, "end": end})
    return result


def summary(offer: Message) -> str:
    amounts = ", ".join(
        f"{item['name']}{'(' + item['reservations'][-1]['role'] + ')' if item.get('reservations') else ''}="
        f"{item['scalar']['value'] if 'scalar' in item else item['ranges']['range']}"
        for item in offer["resources"]
    )
    role = offer.get("allocation_info", {}).get("role", "*")
    return f"{offer['agent_id']['value'][-3:]} {role}: {amounts}"
