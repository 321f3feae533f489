"""Drains: an agent is emptied without losing what only its executor holds.

Theory of operation. A drain is state, `AgentDrainSet`: nothing is launched on the agent any more, and the slot of the executor
there is out of placement, so that other slots are the homes of all it held. It serves on, and the new homes copy from it
before they read the under store (spares.py); blocks that nobody wants and only it holds come along. Once nothing is only
there (moves.py) its executor is ended and its slot launched elsewhere; its volume, if it has one, is given up and kept. The agent
stays drained until somebody undoes it: the operator his own, the end of a maintenance its (maintenance.py).

An operator's drain has a job, which is the account of it: SUCCEEDED once the executor is ended, FAILED if what is left
finds no room elsewhere (then all is as if it had never begun) or if the executor ended too soon. Cancelling it undoes the drain.
"""

from __future__ import annotations

import hashlib
import json

from stoker.executor.units import format_bytes
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Action, Answer, Frame
from stoker.framework.core.catalog import Catalog, Launch
from stoker.framework.core.datasets import refuse
from stoker.framework.core.departures import CAUSE_MAINTENANCE, CAUSE_OPERATOR, Drain
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.job_table import Job, job_created, job_finished, job_id_of, job_started
from stoker.framework.core.launches import is_utf8, now_wall_ms, order_end, released
from stoker.framework.core.moves import is_large, leaving_bits, left_on, waits_for
from stoker.framework.core.requests import has_room_for_job, repeated, uninstalling
from stoker.framework.core.views import agent_view, job_view
from stoker.framework.core.volumes import VolumeState
from stoker.framework.model import JobKind, JobState, Refusal, Settings

DRAINS_MAX = 1_000
AGENTS_NAMED_MAX = 5


def drain_requested(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.DrainRequested, settings: Settings
) -> Frame:
    """Begin to drain an agent, or answer with the drain of it that goes on already; idempotent by key."""
    if not is_utf8(event.key, event.agent) or len(event.key.encode()) > settings.key_bytes_max:
        hint = f"UTF-8 of at most {settings.key_bytes_max} bytes is allowed"
        return refuse(
            event.reply_id, Refusal(400, "bad_request", "the agent or the key is not such text", hint)
        )
    body = hashlib.sha256(json.dumps(["drain", event.agent]).encode()).hexdigest()
    known = catalog.job_of_key(event.key) if event.key else None
    if known is not None:
        return repeated(catalog, fleet, stamp, event.reply_id, known, is_same=known.body == body)
    if catalog.uninstall is not None:
        return refuse(event.reply_id, uninstalling("there is nothing left to drain"))
    found = _find_agent(catalog, fleet, event.agent)
    if isinstance(found, Refusal):
        return refuse(event.reply_id, found)
    agent_id, hostname = found
    active = _job_of(catalog, agent_id)
    if active is not None:
        answer = Answer(event.reply_id, 200, job_view(catalog, fleet, active, stamp.now_ms))
        return Frame(actions=(answer,))
    is_new = agent_id not in catalog.drains
    if not has_room_for_job(catalog, settings) or (is_new and len(catalog.drains) >= DRAINS_MAX):
        message = (
            f"{len(catalog.active_jobs())} jobs are active, {len(catalog.jobs)} in all, and {len(catalog.drains)} agents "
            "drained already"
        )
        hint = "wait for some to finish, or undo drains that are not needed any more"
        return refuse(event.reply_id, Refusal(503, "overloaded", message, hint))
    return _begin(catalog, fleet, stamp, event, body, agent_id, hostname)


def undo_requested(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.DrainUndoRequested) -> Frame:
    """Let an agent be used again; a drain that goes on is cancelled."""
    names = [i for i, drain in catalog.drains.items() if event.agent in (i, drain.hostname)]
    if len(names) != 1:
        return refuse(event.reply_id, _not_one(event.agent, names, "no agent of this name is drained"))
    drain = catalog.drains[names[0]]
    if drain.cause == CAUSE_MAINTENANCE:
        message = f"agent {drain.agent_id} is drained for maintenance: {drain.reason}"
        hint = "it is undone by itself once the maintenance is over, or withdrawn from Mesos' schedule"
        return refuse(event.reply_id, Refusal(409, "maintenance", message, hint))
    entries = undo(catalog, fleet, stamp, drain, "undone on request")
    view = {**agent_view(catalog, fleet, drain.agent_id, drain.hostname), "drain": None}
    return Frame(tuple(entries), (Answer(event.reply_id, 200, view),))


def undo(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, drain: Drain, why: str) -> list[e.Entry]:
    """Return what undoes a drain; its slot is in placement again with the next tick."""
    entries: list[e.Entry] = [e.AgentDrainCleared(drain.agent_id)]
    job = _job_of(catalog, drain.agent_id)
    if job is not None:
        entries.append(_finished(catalog, fleet, stamp, job, JobState.CANCELLED, why))
    return entries


def begin(catalog: Catalog, drain: Drain, wall_ms: int) -> list[e.Entry]:
    """Return what begins a drain, or changes the reason of one."""
    entries: list[e.Entry] = [drain]
    launch = catalog.launch_on_agent(drain.agent_id)
    if launch is not None and not catalog.is_out(launch.slot_id):
        entries.append(e.SlotMarked(launch.slot_id, False, f"its agent is drained: {drain.reason}", wall_ms))
    return entries


def converge(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """On a tick: end executors that nothing is left on, and drains that cannot go on."""
    if fleet.newer_journal or catalog.uninstall is not None:
        return Frame()
    entries: list[e.Entry] = []
    actions: list[Action] = []
    jobs = (
        {job.paths[0]: job for job in catalog.active_jobs() if job.kind == JobKind.DRAIN}
        if catalog.drains
        else {}
    )
    for agent_id, drain in list(catalog.drains.items()):
        if len(entries) >= settings.launches_frame_max:
            break
        launch, job = catalog.launch_on_agent(agent_id), jobs.get(agent_id)
        if launch is None:
            entries += _gone(catalog, fleet, stamp, drain, job)
            continue
        if not catalog.is_out(launch.slot_id):
            entries += begin(catalog, drain, now_wall_ms(catalog, stamp))[1:]
            continue
        if is_empty(catalog, fleet, launch):
            if drain.cause == CAUSE_MAINTENANCE and not fleet.windows.is_open(agent_id):
                continue  # it ends with the next question, which is then answered with yes
            entries += _drained(catalog, fleet, stamp, drain, launch, job)
            actions += order_end(launch, settings)
        elif drain.cause == CAUSE_OPERATOR:
            entries += _given_up(catalog, fleet, stamp, drain, job, settings)
    return Frame(tuple(entries), tuple(actions))


# --- requests


def _find_agent(catalog: Catalog, fleet: Fleet, name: str) -> tuple[str, str] | Refusal:
    known = {launch.agent_id: launch.hostname for launch in catalog.launches.values()}
    known |= {agent.agent_id: agent.hostname for agent in fleet.agents.values()}
    known |= {drain.agent_id: drain.hostname for drain in catalog.drains.values()}
    known |= {volume.agent_id: volume.hostname for volume in catalog.volumes.on_agent(name)}  # it may be away
    if name in known:
        return name, known[name]
    ids = [agent_id for agent_id, hostname in known.items() if hostname == name]
    if len(ids) == 1:
        return ids[0], name
    return _not_one(name, ids, f"there is no agent {name[:80]!r}")


def _not_one(name: str, ids: list[str], nobody: str) -> Refusal:
    if not ids:
        hint = "see them with GET /v1/agents: those with executors, and those that made an offer of late"
        return Refusal(404, "not_found", nobody, hint)
    some = ", ".join(sorted(ids)[:AGENTS_NAMED_MAX])
    return Refusal(
        409, "ambiguous", f"{len(ids)} agents have the name {name[:80]!r}", f"name one by its id: {some}"
    )


def _begin(
    catalog: Catalog,
    fleet: Fleet,
    stamp: ev.Stamp,
    event: ev.DrainRequested,
    body: str,
    agent_id: str,
    hostname: str,
) -> Frame:
    wall_ms = now_wall_ms(catalog, stamp)
    drain = e.AgentDrainSet(agent_id, hostname, "an operator asked for it")
    launch = catalog.launch_on_agent(agent_id)
    blocks, size = (0, 0) if launch is None else _only_there(catalog, fleet, launch, stamp.now_ms)
    created = e.JobCreated(
        job_id=job_id_of(catalog.job_number_next),
        kind=JobKind.DRAIN.value,
        dataset_id=0,
        dataset="",
        paths=(agent_id,),
        key=event.key,
        body=body,
        fit=False,
        wanted_version=0,
        bytes_total=size,
        files_total=0,
        block_count=blocks,
        wall_ms=wall_ms,
    )
    started = e.JobStarted(created.job_id, wall_ms)
    entries = [*begin(catalog, drain, wall_ms), created, started]
    job = job_started(job_created(created), started)
    if launch is None:
        done = _finished(catalog, fleet, stamp, job, JobState.SUCCEEDED, "there is no executor on it")
        entries.append(done)
        job = job_finished(job, done)
    return Frame(tuple(entries), (Answer(event.reply_id, 201, job_view(catalog, fleet, job, stamp.now_ms)),))


def _only_there(catalog: Catalog, fleet: Fleet, launch: Launch, now_ms: int) -> tuple[int, int]:
    """Return how many blocks, and bytes, will be only on this executor once its agent is drained.

    In a large fleet: how many it holds; it takes long to look who else does.
    """
    seen = fleet.executors.get(launch.launch_id)
    if seen is None:
        return 0, 0
    alone = {} if is_large(fleet) else leaving_bits(catalog, fleet, now_ms, also=launch.launch_id)
    left = left_on(catalog, seen, alone, unknown=-1 if is_large(fleet) else 0)
    return sum(part.bits.bit_count() for part in left), sum(part.bytes for part in left)


# --- ends


def _job_of(catalog: Catalog, agent_id: str) -> Job | None:
    """Return the active job of this agent's drain."""
    jobs = (j for j in catalog.active_jobs() if j.kind == JobKind.DRAIN and j.paths == (agent_id,))
    return next(jobs, None)


def is_empty(catalog: Catalog, fleet: Fleet, launch: Launch) -> bool:
    """Return whether nothing is only on this executor, whose agent is drained."""
    move = fleet.moves.by_agent.get(launch.agent_id)
    seen = fleet.launches.get(launch.launch_id)
    if launch.launch_id not in fleet.executors:
        # On its way up it holds nothing yet, but what is on its volume; one that was made for it is PLANNED until it runs.
        volume = catalog.volumes.get(launch.volume_id)
        is_new = launch.volume_id == 0 or (volume is not None and volume.state is VolumeState.PLANNED)
        return is_new and seen is not None and not seen.is_inherited and fleet.subscribed
    return fleet.subscribed and move is not None and move.is_counted and not move.blocks


def _drained(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, drain: Drain, launch: Launch, job: Job | None
) -> list[e.Entry]:
    reason = f"agent {drain.hostname} is drained: {drain.reason}"
    entries: list[e.Entry] = [e.LaunchEnded(launch.launch_id, reason, now_wall_ms(catalog, stamp))]
    entries += released(catalog, launch, reason, now_wall_ms(catalog, stamp))
    if job is not None:
        entries.append(_finished(catalog, fleet, stamp, job, JobState.SUCCEEDED, ""))
    return entries


def _gone(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, drain: Drain, job: Job | None) -> list[e.Entry]:
    """The executor ended by itself: was anything only there?"""
    if job is None:
        return []
    move = fleet.moves.by_agent.get(drain.agent_id)
    if move is not None and move.is_counted and not move.blocks:
        return [_finished(catalog, fleet, stamp, job, JobState.SUCCEEDED, "")]
    what = (
        f"{move.blocks} blocks, {format_bytes(move.bytes)}, had another holder"
        if move is not None and move.is_counted
        else "all that it held was known to be elsewhere"
    )
    message = (
        f"the executor on agent {drain.hostname} ended before {what}: what is lost is read from the under store "
        "again; the agent stays drained"
    )
    return [_finished(catalog, fleet, stamp, job, JobState.FAILED, message)]


def _given_up(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, drain: Drain, job: Job | None, settings: Settings
) -> list[e.Entry]:
    """End an operator's drain that cannot go on, and leave everything where it is."""
    move = fleet.moves.by_agent.get(drain.agent_id)
    if job is None or move is None or not move.is_stuck(stamp.now_ms, settings):
        return []
    message = (
        f"{waits_for(fleet, drain.agent_id)}: the drain is undone, and slot {move.slot_id} keeps them; free something, "
        "or enlarge the fleet (stoker fleet set), then drain again"
    )
    failed = _finished(catalog, fleet, stamp, job, JobState.FAILED, message)
    return [e.AgentDrainCleared(drain.agent_id), failed]


def _finished(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, job: Job, state: JobState, message: str
) -> e.JobFinished:
    move = fleet.moves.by_agent.get(job.paths[0])
    left = 0 if state is JobState.SUCCEEDED or move is None else move.bytes
    return e.JobFinished(
        job_id=job.job_id,
        state=state.value,
        bytes=max(0, job.bytes_total - left),
        files=0,
        error_count=0,
        errors=(),
        message=message,
        wall_ms=now_wall_ms(catalog, stamp),
    )


def cancel(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, job: Job) -> list[e.Entry]:
    """Return what a drain's job leaves undone when it is cancelled: the drain itself."""
    drain = catalog.drains.get(job.paths[0])
    if drain is not None and drain.cause == CAUSE_OPERATOR:
        return undo(catalog, fleet, stamp, drain, "cancelled on request")
    return [_finished(catalog, fleet, stamp, job, JobState.CANCELLED, "cancelled on request")]
