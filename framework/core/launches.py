"""Slots and their executors' launches: that as many stand as are wanted, and that a launch that is over ends.

A slot has one launch at most. A launch is planned in matching.py, journaled before ACCEPT, and ended here: when Mesos
says that its task or executor is gone, when it never came, when its slot is removed or resized. Only an ended launch makes
room for the slot's next one, and where the old executor may still live, its end is ordered (SHUTDOWN and KILL) in the
very frame that ends it; should it heartbeat again, it is told that it is stale, and exits. On the word of a journal that
is known to be an older one nothing is ended (`newer_journal`).

A silent executor hangs, or its agent cannot be reached: Mesos notices a lost agent after a minute or more, and a hanging
executor never. So its machine is asked (silence.py). Where it answers, the executor is told to end by SHUTDOWN alone, while its
launch stands: an agent that is there obeys (it kills what does not end by itself) and says so, and then the slot is
launched anew. Where it does not, nothing is sent, since it would arrive when the network is mended. If no word of an end
comes, the machine does not answer, or Mesos says TASK_UNREACHABLE, nothing is replaced before `unreachable_delay_ms`: an
executor that is heard again, or whose task Mesos finds again, is as it was. After the delay the launch ends, and what
returns then is a stray, and killed. Where most executors are silent at once the fault is rather this scheduler's: then
none is told to end before that delay.
"""

from __future__ import annotations

from typing import NamedTuple

from stoker.executor.units import format_bytes
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import (
    Acknowledge,
    Action,
    Answer,
    Frame,
    Kill,
    ProbeExecutor,
    Reconcile,
    ShutdownExecutor,
)
from stoker.framework.core.catalog import Catalog, Launch, Slot
from stoker.framework.core.explanations import fleet_json
from stoker.framework.core.fleet import AGENT_DRAINING, TERMINAL_STATES, Fleet
from stoker.framework.core.resizing import size_text
from stoker.framework.core.seen import LaunchSeen
from stoker.framework.core.silence import Doubt
from stoker.framework.core.volumes import VolumeState
from stoker.framework.core.wishes import unwanted_volumes, wish_refusal
from stoker.framework.model import FleetSpec, Refusal, Settings, TaskStatus

STAGING_STATES = ("", "TASK_STAGING", "TASK_STARTING")
UNREACHABLE = "TASK_UNREACHABLE"
GONE = "TASK_GONE_BY_OPERATOR"
NOT_FOUND = 127  # of the agent's shell
NOT_FOUND_HINT = ": the Python that is to run it was not found on the agent (a bundle needs the minor version it was made for)"


def task_prefix(cluster: bytes) -> str:
    """Return what the task ids of this cluster begin with."""
    return f"stoker-{cluster.hex()[:8]}-"


def leadership_began(
    catalog: Catalog, stamp: ev.Stamp, event: ev.LeadershipBegan, settings: Settings
) -> Frame:
    """Begin the epoch; found the cluster and its fleet if the journal is empty."""
    entries: list[e.Entry] = []
    wall_ms = now_wall_ms(catalog, stamp)
    if not catalog.cluster:
        entries.append(e.ClusterCreated(event.cluster, event.name, wall_ms))
    entries.append(e.EpochBegan(event.epoch, wall_ms, event.master))
    if catalog.fleet is None:
        entries.append(e.FleetSet(event.fleet))
    entries += _missing_slots(catalog, catalog.fleet or event.fleet, settings)
    return Frame(tuple(entries))


def fleet_requested(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.FleetRequested, settings: Settings
) -> Frame:
    """Set the wanted fleet; slots follow in this frame and the next ticks."""
    refusal = _fleet_refusal(catalog, fleet, event.spec, settings)
    if refusal is not None:
        return Frame(actions=(Answer(event.reply_id, refusal.status, None, refusal),))
    answer = Answer(event.reply_id, 200, fleet_json(catalog, fleet, event.spec, stamp.now_ms))
    if event.spec == catalog.fleet:
        return Frame(actions=(answer,))
    frame = _resize(catalog, fleet, stamp, event.spec, settings)
    return Frame((e.FleetSet(event.spec), *frame.entries), (*frame.actions, answer))


def converge(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """On a tick: add, remove and resize slots; end executors that hang, and launches that never came."""
    if catalog.fleet is None or fleet.newer_journal:
        return Frame()
    frame = _resize(catalog, fleet, stamp, catalog.fleet, settings)
    if frame.entries:
        return frame
    entries: list[e.Entry] = []
    actions: list[Action] = []
    probes: list[tuple[int, ProbeExecutor]] = []
    for launch_id, seen in sorted(fleet.launches.items()):
        if launch_id not in catalog.launches or len(entries) >= settings.launches_frame_max:
            continue
        silence = _silence(fleet, seen, stamp.now_ms, settings)
        if silence.is_over:
            entries.append(e.LaunchEnded(launch_id, silence.reason, now_wall_ms(catalog, stamp)))
            actions += order_end(seen.launch, settings)
        elif not silence.is_suspect or fleet.mass_silence.reason or seen.task_state == UNREACHABLE:
            continue
        else:
            doubt = seen.doubt or Doubt()
            if silence.reason and doubt.hangs(stamp.now_ms, settings):
                if doubt.shutdown_next_ms <= stamp.now_ms:
                    actions.append(ShutdownExecutor(seen.launch.task_id, seen.launch.agent_id, launch_id))
            elif doubt.probe_next_ms <= stamp.now_ms:
                probes.append((doubt.probe_next_ms, _probe(fleet, seen.launch)))
    probes.sort(key=lambda pair: pair[0])  # whoever waits longest is asked first
    actions += [probe for _, probe in probes[: settings.probes_frame_max]]
    if not entries:
        entries += _mark_slots(catalog, fleet, stamp, settings)
    return Frame(tuple(entries), tuple(actions))


def task_updated(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.TaskUpdated, settings: Settings
) -> Frame:
    """End the launch whose task is over; kill a task of ours that the catalog does not know; acknowledge."""
    status = event.status
    launch = catalog.launch_of_task(status.task_id)
    entries: list[e.Entry] = []
    actions: list[Action] = []
    is_told = status.state != "TASK_UNKNOWN" or not fleet.newer_journal
    is_told = is_told and fleet.believes(status, catalog, stamp.now_ms)
    if launch is not None and status.state in TERMINAL_STATES and is_told:
        reason = clip(_task_end(status), settings.error_bytes_max)
        entries.append(e.LaunchEnded(launch.launch_id, reason, now_wall_ms(catalog, stamp)))
        if status.reason == AGENT_DRAINING and status.state != GONE:  # then operations.py forgets the volume
            entries += released(catalog, launch, "Mesos drains its agent", now_wall_ms(catalog, stamp))
        if status.state == "TASK_UNKNOWN":
            actions += order_end(launch, settings)  # the master cannot tell whether it lives
    elif launch is None and _is_stray(catalog, fleet, status):
        actions += _order_end(status.task_id, status.agent_id, settings)
    if status.uuid:
        actions.append(Acknowledge(status.task_id, status.agent_id, status.uuid))
    return Frame(tuple(entries), tuple(actions))


def executor_ended(catalog: Catalog, stamp: ev.Stamp, event: ev.ExecutorEnded) -> Frame:
    """The executor's process is gone: so is its launch, whatever becomes of the task's own update."""
    launch = catalog.launch_of_task(event.executor_id)
    if launch is None:
        return Frame()
    reason = f"its process ended on {launch.hostname}: {describe_wait_status(event.wait_status)}"
    return Frame((e.LaunchEnded(launch.launch_id, reason, now_wall_ms(catalog, stamp)),))


def agent_removed(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.AgentRemoved, settings: Settings
) -> Frame:
    """End the launch that never came up there. Another's executor may live on behind a partition: heartbeats decide."""
    launch = catalog.launch_on_agent(event.agent_id)
    if launch is None or launch.launch_id in fleet.executors or fleet.newer_journal:
        return Frame()
    if fleet.launches[launch.launch_id].is_inherited:
        return Frame()  # an earlier leadership may have heard it
    reason = f"the master removed agent {launch.hostname} before the executor answered"
    entry = e.LaunchEnded(launch.launch_id, reason, now_wall_ms(catalog, stamp))
    return Frame((entry,), tuple(order_end(launch, settings)))


def subscribed(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.Subscribed, settings: Settings
) -> Frame:
    """Journal a first framework id, and ask what became of the tasks."""
    frame = reconcile(fleet, stamp, settings)
    if catalog.framework_id:
        return frame
    return Frame((e.FrameworkRegistered(event.framework_id),), frame.actions)


def reconcile(fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """Ask for the launches' tasks until all are answered; then, now and then, for all tasks that the master knows."""
    if not fleet.subscribed:
        return Frame()
    if fleet.unanswered:
        if stamp.now_ms < fleet.reconcile_next_ms:
            return Frame()
        tasks = sorted(fleet.unanswered.items())[: settings.reconcile_tasks_max]
        return Frame(actions=(Reconcile(tuple(tasks)),))
    if stamp.now_ms < fleet.implicit_next_ms:
        return Frame()
    return Frame(actions=(Reconcile(()),))


def now_wall_ms(catalog: Catalog, stamp: ev.Stamp) -> int:
    """Return the time to journal: the stamp's, but never before one that is journaled already."""
    return max(stamp.wall_ms, catalog.wall_ms)


def clip(text: str, size_max: int) -> str:
    """Return `text`, cut to `size_max` bytes of UTF-8; what UTF-8 cannot say becomes a question mark.

    >>> clip("abcdef", 5), clip(chr(0xDC80) + "b", 5)
    ('ab...', '?b')
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= size_max:
        return data.decode()
    return data[: size_max - 3].decode("utf-8", "ignore") + "..."


def is_utf8(*texts: str) -> bool:
    """Return whether all can be journaled: JSON may hold halves of surrogate pairs."""
    return all(not any("\ud800" <= c <= "\udfff" for c in text) for text in texts)


def describe_wait_status(status: int) -> str:
    """Return what a waitpid status says, in words.

    >>> describe_wait_status(9), describe_wait_status(256)
    ('killed by signal 9', 'exit status 1')
    """
    if status & 0x7F:
        return f"killed by signal {status & 0x7F}"
    code = status >> 8 & 0xFF
    return f"exit status {code}" + (NOT_FOUND_HINT if code == NOT_FOUND else "")


def _fleet_refusal(catalog: Catalog, fleet: Fleet, spec: FleetSpec, settings: Settings) -> Refusal | None:
    least, most = settings.executor_mem_bytes_min, settings.executor_mem_bytes_max
    if not 0 <= spec.instances <= settings.instances_max:
        return Refusal(
            400,
            "bad_request",
            f"instances is {spec.instances}",
            f"0 to {settings.instances_max} are allowed",
        )
    if not least <= spec.mem_bytes <= most:
        return Refusal(
            400,
            "bad_request",
            f"mem_bytes is {spec.mem_bytes}",
            f"{format_bytes(least)} to {format_bytes(most)} are allowed, an executor",
        )
    if spec.cpus_milli <= 0:
        return Refusal(400, "bad_request", f"cpus_milli is {spec.cpus_milli}", "it must be above 0")
    return wish_refusal(catalog, fleet, spec, settings)


def _missing_slots(catalog: Catalog, spec: FleetSpec, settings: Settings) -> list[e.Entry]:
    count = min(spec.instances - len(catalog.slots), settings.slots_frame_max)
    first = catalog.slot_id_next
    return [e.SlotAdded(i, spec.mem_bytes, spec.disk_bytes) for i in range(first, first + count)]


def _resize(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, spec: FleetSpec, settings: Settings) -> Frame:
    """Bring the slots towards `spec`, a bounded number of steps."""
    surplus = len(catalog.slots) - spec.instances
    if surplus < 0:
        return Frame(tuple(_missing_slots(catalog, spec, settings)))
    entries: list[e.Entry] = []
    actions: list[Action] = []
    if surplus > 0:
        for slot in _least_needed(catalog)[: min(surplus, settings.launches_frame_max)]:
            if slot.launch_id:
                reason = f"the fleet was set to {spec.instances} instances"
                entries.append(e.LaunchEnded(slot.launch_id, reason, now_wall_ms(catalog, stamp)))
                actions += order_end(catalog.launches[slot.launch_id], fleet.settings)
            volume = catalog.volumes.of_slot(slot.slot_id)
            if volume is not None:
                reason = f"the fleet was set to {spec.instances} instances"
                entries.append(e.VolumeDoomed(volume.volume_id, reason, now_wall_ms(catalog, stamp)))
            entries.append(e.SlotRemoved(slot.slot_id))
        return Frame(tuple(entries), tuple(actions))
    size = (spec.mem_bytes, spec.disk_bytes)
    other = [s for s in catalog.slots.values() if (s.mem_bytes, s.disk_bytes) != size]
    if other:
        sized = [e.SlotResized(s.slot_id, *size) for s in other[: settings.slots_frame_max]]
        return Frame(tuple(sized))
    doomed = unwanted_volumes(catalog, spec, now_wall_ms(catalog, stamp))
    if doomed:
        return Frame(tuple(doomed[: settings.slots_frame_max]))
    return _replace_misfit(catalog, fleet, stamp)


def _least_needed(catalog: Catalog) -> list[Slot]:
    return sorted(catalog.slots.values(), key=lambda s: (s.launch_id != 0, -s.slot_id))


def _replace_misfit(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp) -> Frame:
    """End one executor that has another size than its slot and room for it, while all the others in placement run."""
    if not fleet.subscribed:
        return Frame()
    slots = catalog.slots.values()
    for slot, launch in fleet.resizing.with_room(catalog, stamp.now_ms):
        others = (s for s in slots if s.slot_id != slot.slot_id and not catalog.is_out(s.slot_id))
        if not all(_is_up(fleet, s.launch_id, stamp.now_ms) for s in others):
            return Frame()
        entry = e.LaunchEnded(launch.launch_id, size_text(slot, launch), now_wall_ms(catalog, stamp))
        return Frame((entry,), tuple(order_end(launch, fleet.settings)))
    return Frame()


def _is_up(fleet: Fleet, launch_id: int, now_ms: int) -> bool:
    executor = fleet.executors.get(launch_id)
    return executor is not None and fleet.silent_ms(executor, now_ms) < fleet.settings.heartbeat_timeout_ms


def _probe(fleet: Fleet, launch: Launch) -> ProbeExecutor:
    """Ask where the executor listens; one that this leadership has not heard was told to listen there."""
    executor = fleet.executors.get(launch.launch_id)
    if executor is None:
        return ProbeExecutor(launch.launch_id, launch.hostname, launch.port)
    return ProbeExecutor(launch.launch_id, executor.heartbeat.host, executor.heartbeat.port)


class _Silence(NamedTuple):
    """Why something must be done about a launch's executor, if so.

    `is_over`: the launch is given up. `is_suspect`: half of the time that is allowed is over, and its machine is asked.
    """

    reason: str = ""
    is_over: bool = False
    is_suspect: bool = False


def _silence(fleet: Fleet, seen: LaunchSeen, now_ms: int, settings: Settings) -> _Silence:
    """Look how long nobody heard the launch's executor. Without Mesos it could not be ended: then nothing is done."""
    if not fleet.subscribed:
        return _Silence()
    executor = fleet.executors.get(seen.launch.launch_id)
    state = f", its task is {seen.task_state}" if seen.task_state else ""
    if executor is None and (not seen.is_inherited or seen.task_state in STAGING_STATES[1:]):
        waited_ms, limit_ms = fleet.waited_ms(seen, now_ms), settings.register_timeout_ms
        if waited_ms <= limit_ms:
            return _Silence()
        reason = f"its executor on {seen.launch.hostname} was not heard within {limit_ms} ms{state}"
        return _Silence(reason, is_over=True)
    if executor is None:
        silent_ms = fleet.waited_ms(seen, now_ms)
        limit_ms = max(settings.heartbeat_timeout_ms, settings.residency_grace_ms)
        if not seen.task_state:  # Mesos may not know its agent again yet
            limit_ms = max(limit_ms, settings.register_timeout_ms)
    else:
        silent_ms, limit_ms = fleet.silent_ms(executor, now_ms), settings.heartbeat_timeout_ms
    if silent_ms <= limit_ms:
        return _Silence(is_suspect=silent_ms > limit_ms // 2)
    reason = f"its executor on {seen.launch.hostname} was silent for {silent_ms} ms{state}"
    is_over = silent_ms > max(limit_ms, settings.unreachable_delay_ms)
    return _Silence(reason, is_over=is_over, is_suspect=True)


def order_end(launch: Launch, settings: Settings) -> list[Action]:
    """Return what ends the executor of a launch that is over."""
    return _order_end(launch.task_id, launch.agent_id, settings)


def _order_end(task_id: str, agent_id: str, settings: Settings) -> list[Action]:
    # KILL reaches the executor, which may hang; SHUTDOWN makes the agent kill it. Both are unreliable.
    return [ShutdownExecutor(task_id, agent_id), Kill(task_id, agent_id, settings.kill_grace_ms)]


def released(catalog: Catalog, launch: Launch, reason: str, wall_ms: int) -> list[e.Entry]:
    """Return what frees the launch's slot from its volume's agent; the volume is kept."""
    volume = catalog.volumes.of_slot(launch.slot_id)
    is_ready = (
        volume is not None and volume.volume_id == launch.volume_id and volume.state is VolumeState.READY
    )
    return [e.VolumeReleased(launch.volume_id, reason, wall_ms)] if is_ready else []


def _mark_slots(catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> list[e.Entry]:
    """Take slots that have no executor for too long out of placement, and back in once they have."""
    wall_ms = now_wall_ms(catalog, stamp)
    marks: list[e.Entry] = []
    for slot_id in sorted((fleet.empty_since_ms.keys() | catalog.slots_out.keys()) & catalog.slots.keys()):
        empty_ms = fleet.empty_ms(slot_id, stamp.now_ms)
        launch = catalog.launches.get(catalog.slots[slot_id].launch_id)
        is_drained = launch is not None and launch.agent_id in catalog.drains
        if catalog.is_out(slot_id) and launch is not None and launch.launch_id in fleet.executors:
            if is_drained:
                continue
            marks.append(e.SlotMarked(slot_id, True, "its executor answers", wall_ms))
        elif not catalog.is_out(slot_id) and fleet.subscribed and empty_ms > settings.slot_out_ms:
            marks.append(e.SlotMarked(slot_id, False, f"no executor for {empty_ms} ms", wall_ms))
    return marks[: settings.slots_frame_max]


def repeat_kills(fleet: Fleet, stamp: ev.Stamp, settings: Settings) -> Frame:
    """On a tick: kill what was to die and is not known to be dead."""
    if not fleet.subscribed or fleet.newer_journal:
        return Frame()
    due = sorted((i, x.agent_id) for i, x in fleet.endings.items() if x.next_ms <= stamp.now_ms)
    return Frame(actions=tuple(call for pair in due for call in _order_end(*pair, settings)))


def _is_stray(catalog: Catalog, fleet: Fleet, status: TaskStatus) -> bool:
    """Return whether a task of this cluster lives though its launch has ended, and nobody ordered its end yet.

    A launch that the journal has never known is none that ended: the journal is an older one.
    """
    return (
        status.state not in TERMINAL_STATES
        and status.state != UNREACHABLE
        and bool(catalog.cluster)
        and status.task_id.startswith(task_prefix(catalog.cluster))
        and not fleet.newer_journal
        and _launch_id_of(status.task_id) < catalog.launch_id_next
        and status.task_id not in fleet.endings
    )


def _launch_id_of(task_id: str) -> int:
    """Return the launch's number in a task id of ours; 0: it is in no form that we know.

    >>> _launch_id_of("stoker-00010203-e7-s2-l31"), _launch_id_of("stoker-00010203-x")
    (31, 0)
    """
    digits = task_id.rpartition("-l")[2]
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else 0


def _task_end(status: TaskStatus) -> str:
    why = " ".join(part for part in (status.reason, status.message) if part)
    return f"{status.state}: {why}" if why else status.state
