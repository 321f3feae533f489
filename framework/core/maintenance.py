"""Inverse offers: Mesos asks for an agent back, and gets it once nothing is lost by that.

An agent whose maintenance begins soon is drained (draining.py). While copies run its inverse offers are declined for some seconds.
Once nothing is only there the next one is left open, the executor is ended, and when Mesos says that it has (or it was told often
enough) the offer is accepted, as often as Mesos asks.
(It asks no more once we have nothing there: an executor that ended in between would leave our no as the last word.) Windows
that begin later than `maintenance_soon_ms` are left open until then. The end of the maintenance, or its withdrawal, undoes the
drain that it caused, and no other.

The one place where wall time is compared: windows are given in it.
"""

from __future__ import annotations

import datetime

from stoker.framework.core import entries as e
from stoker.framework.core.actions import AcceptInverse, Action, DeclineInverse, Frame
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.departures import CAUSE_MAINTENANCE, Drain
from stoker.framework.core.draining import DRAINS_MAX, begin, is_empty, undo
from stoker.framework.core.events import Stamp
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.launches import now_wall_ms
from stoker.framework.model import InverseOffer, Settings

TOLD_MS = 3_000  # from the first implicit reconciliation of a subscription until it has told of all tasks


def converge(catalog: Catalog, fleet: Fleet, stamp: Stamp, settings: Settings) -> Frame:
    """On inverse offers, and on a tick: answer what can be answered, drain what is asked for, undo what is over."""
    if not fleet.subscribed or fleet.newer_journal:
        return Frame()
    entries: list[e.Entry] = []
    given: list[str] = []
    kept: list[str] = []
    begun: set[str] = set()
    ending = {task.agent_id for task in fleet.endings.values()}
    # What was ended before a take-over may live yet, and is unknown here until Mesos has told of all tasks.
    asked_ms = fleet.implicit_sent_ms
    is_told = not fleet.may_have_strays or (asked_ms is not None and stamp.now_ms - asked_ms >= TOLD_MS)
    for offer_id, offer in sorted(fleet.windows.open.items()):
        if offer.unavailable_from_ms - stamp.wall_ms > settings.maintenance_soon_ms:
            continue
        agent_id = offer.agent_id
        is_known = agent_id in catalog.drains or agent_id in begun
        if not is_known and catalog.uninstall is None and len(entries) < settings.launches_frame_max:
            entries += _begin(catalog, fleet, stamp, offer)
            begun.add(agent_id)
        launch = catalog.launch_on_agent(agent_id)
        if launch is None:
            if agent_id not in ending and is_told:
                given.append(offer_id)
        elif agent_id not in catalog.drains or not is_empty(catalog, fleet, launch):
            kept.append(offer_id)
    for drain in catalog.drains.values():
        is_over = drain.cause == CAUSE_MAINTENANCE and _is_over(catalog, fleet, stamp, drain, settings)
        if is_over and len(entries) < settings.launches_frame_max:
            entries += undo(catalog, fleet, stamp, drain, "the maintenance is over or withdrawn")
    actions: list[Action] = []
    if given:
        actions.append(AcceptInverse(tuple(given), settings.inverse_accept_ms))
    if kept:
        actions.append(DeclineInverse(tuple(kept), settings.inverse_decline_ms))
    return Frame(tuple(entries), tuple(actions))


def _is_over(catalog: Catalog, fleet: Fleet, stamp: Stamp, drain: Drain, settings: Settings) -> bool:
    is_used = catalog.launch_on_agent(drain.agent_id) is not None
    if fleet.windows.is_withdrawn(drain.agent_id, stamp.now_ms, is_used=is_used):
        return True
    is_past = 0 < drain.until_wall_ms < stamp.wall_ms - settings.maintenance_forget_ms
    return is_past and not is_used and not fleet.windows.is_open(drain.agent_id)


def window_text(offer: InverseOffer) -> str:
    """Return when an agent is wanted back, in words.

    >>> window_text(InverseOffer("o", "a", 0, 90_000))
    'from 1970-01-01T00:00:00Z for 90 s'
    """
    seconds = min(max(0, offer.unavailable_from_ms // 1000), 250_000_000_000)  # the year 9892
    start = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    lasts_s = offer.unavailable_for_ms // 1000
    return f"from {start:%Y-%m-%dT%H:%M:%SZ}" + (f" for {lasts_s} s" if lasts_s else "")


def _begin(catalog: Catalog, fleet: Fleet, stamp: Stamp, offer: InverseOffer) -> list[e.Entry]:
    if len(catalog.drains) >= DRAINS_MAX:
        return []
    launch = catalog.launch_on_agent(offer.agent_id)
    seen = fleet.agents.get(offer.agent_id)
    hostname = launch.hostname if launch is not None else seen.hostname if seen is not None else ""
    until_ms = (
        offer.unavailable_from_ms + offer.unavailable_for_ms
        if offer.unavailable_for_ms
        else 0
    )  # fmt: skip
    drain = e.AgentDrainSet(
        offer.agent_id,
        hostname or offer.agent_id,
        f"maintenance {window_text(offer)}",
        until_ms,
        CAUSE_MAINTENANCE,
    )
    return begin(catalog, drain, now_wall_ms(catalog, stamp))
