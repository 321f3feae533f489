"""Answers to heartbeats, and how often they come."""

from __future__ import annotations

from stoker.executor.messages import (
    HEARTBEAT_INTERVAL_MS,
    HEARTBEAT_INTERVAL_MS_MAX,
    Heartbeat,
    HeartbeatAnswer,
)
from stoker.framework.core import events as ev
from stoker.framework.core.actions import AnswerHeartbeat, Frame
from stoker.framework.core.assignments import assignment_version, current_assignment
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.judging import judge

QUICK_INTERVAL_MS = 200  # while somebody waits for what executors do,
LINGER_MS = 5_000  # and for a while longer: a load often follows a listing
HEARTBEATS_PER_S_MAX = 2_000  # of all executors: what a leader is asked to take


def answer_heartbeat(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.HeartbeatReceived) -> Frame:
    """Tell the executor whether it has a place, what is missing from its report, and its newer assignment."""
    heartbeat = event.heartbeat
    status = judge(catalog, heartbeat)
    seen = fleet.executors.get(heartbeat.launch_id)
    if status == "ok" and (seen is None or seen.heartbeat.incarnation != heartbeat.incarnation):
        status = "stale"  # another process answers for this launch already
    if status != "ok" or seen is None:
        return _answer(event, HeartbeatAnswer(status, catalog.epoch, heartbeat.sequence, False, ()))
    answer = HeartbeatAnswer(
        status,
        catalog.epoch,
        heartbeat.sequence,
        want_whole=seen.needs_whole,
        schedulers=(),  # the loop fills in who schedules
        assignment=current_assignment(catalog, fleet) if _is_behind(catalog, fleet, heartbeat) else None,
        interval_ms=interval_ms(catalog, fleet, stamp.now_ms),
        removed=tuple(key for key in heartbeat.unknown if was_removed(catalog, *key)),
    )
    return _answer(event, answer)


def was_removed(catalog: Catalog, dataset_id: int, generation: int) -> bool:
    """Return whether a dataset's generation is surely of no use to anybody any more. Not to be known is no proof."""
    dataset = catalog.datasets.get(dataset_id)
    if dataset is not None:
        return dataset.current is not None and generation < dataset.current.generation
    if catalog.generation_min == 1:  # no backup was restored: what was ever added is known, or was removed
        return dataset_id < catalog.dataset_id_next
    return dataset_id in catalog.names_removed.values()


def interval_ms(catalog: Catalog, fleet: Fleet, now_ms: int) -> int:
    """Return when an executor's next heartbeat is wanted: soon while a job or a listing is, or just was, under way."""
    is_awaited = now_ms - fleet.awaited_ms < LINGER_MS
    wanted_ms = QUICK_INTERVAL_MS if is_awaited else HEARTBEAT_INTERVAL_MS
    bearable_ms = len(catalog.slots) * 1000 // HEARTBEATS_PER_S_MAX
    return min(max(wanted_ms, bearable_ms), HEARTBEAT_INTERVAL_MS_MAX)


def _is_behind(catalog: Catalog, fleet: Fleet, heartbeat: Heartbeat) -> bool:
    return (heartbeat.epoch_seen, heartbeat.assignment_version) < (
        catalog.epoch,
        assignment_version(catalog, fleet),
    )


def _answer(event: ev.HeartbeatReceived, answer: HeartbeatAnswer) -> Frame:
    return Frame(actions=(AnswerHeartbeat(event.reply_id, answer),))
