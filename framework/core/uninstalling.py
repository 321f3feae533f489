"""The end of a cluster: `stoker uninstall`, and a framework that Mesos removed. The only way to a TEARDOWN.

Theory of operation. `UninstallBegan` is the promise; from then on nothing is launched, and each step follows from the state that is
left, so another leader goes on where one stopped:

    CLEARING       all executors are killed, again and again, until Mesos says that they ended; then volumes are doomed where
                   no executor is any more, and destroyed as their agents' offers come (matching.py), unless they are kept
    TEARING_DOWN   nothing is left, or what is left was waited for in vain and is named: TEARDOWN, until Mesos has it
    FINISHED       the journal is only to be read

What a TEARDOWN does not reach are volumes and reservations of agents that are away: they keep our labels.
"""

from __future__ import annotations

from typing import Any

from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core import leftovers
from stoker.framework.core.actions import Action, Answer, BeginAnew, EndCluster, Frame, Teardown
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.datasets import refuse
from stoker.framework.core.departures import Uninstall, UninstallState
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.launches import now_wall_ms, order_end
from stoker.framework.core.volumes import VolumeState
from stoker.framework.model import JobState, Refusal, Settings

LEFT_NAMED_MAX = 20
DOOMED = "the cluster is being uninstalled"


def uninstall_requested(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.UninstallRequested
) -> Frame:
    """Begin to uninstall; one that goes on already is only told of."""
    known = catalog.uninstall
    if known is not None:
        if known.keep_volumes == event.keep_volumes:
            return Frame(actions=(Answer(event.reply_id, 200, uninstall_view(catalog, known)),))
        how = "keeps" if known.keep_volumes else "destroys"
        message = f"an uninstall that {how} the volumes goes on already"
        return refuse(
            event.reply_id, Refusal(409, "uninstalling", message, "ask for the same, or wait for its end")
        )
    if fleet.newer_journal:
        hint = "bring the newest journal back first: what this one does not know would stay behind"
        return refuse(event.reply_id, Refusal(409, "older_journal", fleet.newer_journal, hint))
    wall_ms = now_wall_ms(catalog, stamp)
    began = e.UninstallBegan(event.keep_volumes, wall_ms)
    failed = [
        e.JobFinished(job.job_id, JobState.FAILED.value, 0, 0, 0, (), DOOMED, wall_ms)
        for job in catalog.active_jobs()
    ]
    view = uninstall_view(catalog, Uninstall(event.keep_volumes, wall_ms))
    return Frame((began, *failed), (Answer(event.reply_id, 201, view),))


def converge(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """On a tick: the next step; or the next of a framework that Mesos removed."""
    uninstall = catalog.uninstall
    if uninstall is None:
        return _end_orphans(catalog, stamp, settings)
    if not fleet.subscribed or fleet.newer_journal:
        return Frame()
    if uninstall.state is UninstallState.TEARING_DOWN:
        is_due = stamp.now_ms >= fleet.teardown_next_ms
        return Frame(actions=(Teardown(),)) if is_due else Frame()
    return (
        _clear(catalog, fleet, stamp, uninstall, settings)
        if uninstall.state is UninstallState.CLEARING
        else Frame()
    )


def torn_down(catalog: Catalog, stamp: ev.Stamp) -> Frame:
    """Mesos has the TEARDOWN, or knows the framework no more."""
    uninstall = catalog.uninstall
    if uninstall is None or uninstall.state is not UninstallState.TEARING_DOWN:
        return Frame()
    return Frame((e.UninstallFinished(now_wall_ms(catalog, stamp)),), (EndCluster(uninstall.left),))


def framework_removed(catalog: Catalog, stamp: ev.Stamp, settings: Settings) -> Frame:
    """The operator lets a new framework take the place of the one that Mesos removed: its tasks are no more."""
    frame = _end_launches(catalog, stamp, settings)
    forgotten = (e.FrameworkRegistered(""),) if catalog.framework_id else ()
    return Frame((*forgotten, *frame.entries), frame.actions)


def uninstall_view(catalog: Catalog, uninstall: Uninstall | None) -> dict[str, Any]:
    """Return what GET /v1/uninstall says."""
    if uninstall is None:
        return {"state": None, "keep_volumes": None, "began_ms": None, "executors_left": None, "volumes_left": None,
                "left": [], "finished_ms": None}  # fmt: skip
    return {
        "state": uninstall.state.value,
        "keep_volumes": uninstall.keep_volumes,
        "began_ms": uninstall.began_ms,
        "executors_left": len(catalog.launches),
        "volumes_left": 0 if uninstall.keep_volumes else len(catalog.volumes),
        "left": list(uninstall.left),
        "finished_ms": uninstall.finished_ms or None,
    }


def _clear(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, uninstall: Uninstall, settings: Settings
) -> Frame:
    entries: list[e.Entry] = []
    actions: list[Action] = []
    for launch in catalog.launches.values():
        if launch.task_id not in fleet.endings and len(actions) < 2 * settings.launches_frame_max:
            actions += order_end(launch, settings)
    volumes = [] if uninstall.keep_volumes else list(catalog.volumes.values())
    for volume in volumes:
        is_free = catalog.launch_on_agent(volume.agent_id) is None
        if volume.state is not VolumeState.DOOMED and is_free and len(entries) < settings.launches_frame_max:
            entries.append(e.VolumeDoomed(volume.volume_id, DOOMED, now_wall_ms(catalog, stamp)))
    is_over = fleet.clearing_ms(stamp.now_ms) >= settings.uninstall_patience_ms
    is_clean = uninstall.keep_volumes or leftovers.is_clean(catalog, fleet, stamp.now_ms)
    if (not catalog.launches and not volumes and is_clean) or is_over:
        left = tuple(_left(catalog, fleet, keep_volumes=uninstall.keep_volumes))
        return Frame((*entries, e.TeardownPlanned(left, now_wall_ms(catalog, stamp))), tuple(actions))
    return Frame(tuple(entries), tuple(actions))


def _left(catalog: Catalog, fleet: Fleet, *, keep_volumes: bool) -> list[str]:
    """Return what the TEARDOWN leaves behind, or may, in words."""
    texts = [
        f"executor {launch.task_id} on agent {launch.agent_id} ({launch.hostname}): Mesos did not confirm its end"
        for launch in catalog.launches.values()
    ]
    if not keep_volumes:
        texts += [
            f"volume {volume.volume_id}, {volume.disk_bytes} bytes, on agent {volume.agent_id} ({volume.hostname}): "
            "not destroyed, its agent made no offer of it"
            for _, volume in sorted(catalog.volumes.items())
        ]
        sightings = fleet.sightings
        texts += [
            f"volume {volume.volume_id}, {volume.disk_bytes} bytes, on agent {agent_id}: the journal does not know it, and "
            "it was not destroyed"
            for agent_id, volume in sightings.unknown_volumes()
        ]
        texts += [
            f"{reserved.disk_bytes} bytes reserved for volume {reserved.volume_id} on agent {agent_id}: not given back"
            for agent_id, table in sorted(sightings.unused.items())
            for reserved in table.values()
        ]
    more = len(texts) - LEFT_NAMED_MAX
    return texts[:LEFT_NAMED_MAX] + ([f"and {more} more"] if more > 0 else [])


def _end_orphans(catalog: Catalog, stamp: ev.Stamp, settings: Settings) -> Frame:
    """Launches without a framework are those of one that was removed."""
    return (
        Frame() if catalog.framework_id or not catalog.launches else _end_launches(catalog, stamp, settings)
    )


def _end_launches(catalog: Catalog, stamp: ev.Stamp, settings: Settings) -> Frame:
    wall_ms = now_wall_ms(catalog, stamp)
    reason = "Mesos removed the framework that it was launched by"
    launches = list(catalog.launches)[: settings.launches_frame_max]
    entries = tuple(e.LaunchEnded(launch_id, reason, wall_ms) for launch_id in launches)
    return Frame(entries, (BeginAnew(),) if len(launches) == len(catalog.launches) else ())
