"""The fleet: observed state. Offers, agents, executors and what they hold, listings under way, and what was tried when.

Volatile: a new leader begins with an empty one and the replayed catalog, and executors' heartbeats, offers and Mesos'
answers fill it. `observe` takes in an event before it is decided on, `apply` an action once it is decided; nothing
else changes it. It records and never decides: what to do about a silent executor is decided elsewhere.

What the catalog promises is not copied here; `observe` follows launches that ended to forget what was known of them,
and to let the slot's back-off begin.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import islice

from stoker.executor.messages import Assignment, Heartbeat, Residency, SlotAddress
from stoker.framework.core import actions as a
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.job_table import Job
from stoker.framework.core.judging import judge, proof_of_newer_journal
from stoker.framework.core.looks import Key, tells_of_loss
from stoker.framework.core.moves import Moves
from stoker.framework.core.progress import job_progress
from stoker.framework.core.reports import Reports
from stoker.framework.core.resizing import Resizing
from stoker.framework.core.seen import (
    AgentSeen,
    BackOff,
    Ending,
    ExecutorSeen,
    Held,
    LaunchSeen,
    Listed,
    ListingSeen,
)
from stoker.framework.core.sightings import Sightings
from stoker.framework.core.silence import Doubt, MassSilence
from stoker.framework.core.spares import Spares
from stoker.framework.core.windows import Windows
from stoker.framework.model import Offer, Selection, Settings, TaskStatus

AGENTS_MAX = 20_000  # remembered, the longest unseen are forgotten
ADDRESSES_AT_ONCE_MAX = (
    100  # slots; in larger fleets address changes reach assignments with the next tick, together
)
RATE_SAMPLES_MAX = 64

TERMINAL_STATES = frozenset(
    "TASK_" + s for s in "FINISHED FAILED KILLED LOST ERROR DROPPED GONE GONE_BY_OPERATOR UNKNOWN".split()
)

AGENT_DRAINING = "REASON_AGENT_DRAINING"


class Fleet:
    """All observed state of one leadership. Read it freely; it changes by `observe` and `apply` alone.

    It is bounded by the catalog, which it follows: launches, executors, unanswered by the catalog's launches; back-offs
    and empty_since_ms by its slots; listings and listed by its datasets; selections, rates and reports by its active
    jobs; what an executor holds by its datasets. Of the rest, agents end at AGENTS_MAX, decisions at offers_kept_max,
    endings after kill_tries_max tries; and offers are as many as the master makes.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.seed = b""
        self.began_ms = 0
        self.newer_journal = ""  # how we know of one, while this leadership lasts: see proof_of_newer_journal
        self.may_have_strays = (
            False  # launches ended before the take-over: their tasks may live yet, unknown here
        )
        self.revision = 0  # grows with slot addresses and `residency_complete`
        self.residency_complete = False

        self.subscribed = False
        self.framework_id = self.master_id = ""
        self.master_since_ms = 0  # this master is known here
        self.offers: dict[str, Offer] = {}
        self.agents: dict[str, AgentSeen] = {}
        self.sightings = Sightings(settings)
        self.decisions = self.sightings.decisions
        self.suppressed = False
        self.revived_ms = 0
        self.revive_delay_ms = settings.revive_interval_ms_min
        self.suppress_sent_ms = 0

        self.unanswered: dict[str, str] = {}  # task id: agent id, asked of explicit reconciliation
        self.reconcile_next_ms = self.implicit_next_ms = 0
        self.reconcile_delay_ms = settings.reconcile_delay_ms_min
        self.implicit_sent_ms: int | None = None  # first asked for all tasks in this subscription

        self.launches: dict[int, LaunchSeen] = {}
        self.executors: dict[int, ExecutorSeen] = {}  # by launch id
        self.backoffs: dict[int, BackOff] = {}  # by slot id
        self.empty_since_ms: dict[int, int] = {}  # slot id: without a heard executor since
        self.endings: dict[str, Ending] = {}  # by task id

        self.listings: dict[int, ListingSeen] = {}  # by dataset id: those that run
        self.listed: dict[int, Listed] = {}  # by dataset id: first listings that succeeded, not journaled yet
        self.selections: dict[
            tuple[int, int], Selection
        ] = {}  # by (dataset id, wanted version that it led to)
        self.rates: dict[str, deque[tuple[int, int]]] = {}  # job id: (now_ms, bytes done)
        self.reports: dict[int, Reports] = {}  # by dataset id: remembered work; of those with active jobs
        self.moves = Moves()
        self.spares = Spares()
        self.windows = Windows(settings)
        self.resizing = Resizing(settings)
        self.teardown_next_ms = 0
        self.cleared_ms: int | None = None  # since an uninstall knows of nothing that is left
        self._clearing_since_ms: int | None = None
        self._left: tuple[int, ...] = ()  # what an uninstall had left when it was looked last
        self._drain_count = 0

        self.awaited_ms = -(2**63)  # when somebody last waited for what executors do

        self.assignment_memo: Assignment | None = None

        self.mass_silence = MassSilence(settings.heartbeat_timeout_ms)
        self._observed_ms: int | None = None
        self._awake_ms = 0  # silence is measured from here at the earliest
        self._followed = -1
        self._awaited: set[int] = set()  # launches of before the take-over, not heard in whole yet
        self._is_dirty = False
        self._removed_count = 0  # of datasets, when it was last looked who knows of removed ones

    def observe(self, stamp: ev.Stamp, event: ev.Event, catalog: Catalog) -> None:  # noqa: C901 (one flat match)
        """Take in what the event says; `catalog` is the state that it will be decided on."""
        changed_ms = self._pass_time(stamp)
        if self.listed:
            self._drop_listed(catalog)
        if catalog.has_active_jobs or self.listings or self.listed or catalog.drains:
            self.awaited_ms = stamp.now_ms
        if not isinstance(event, ev.LeadershipBegan):
            self._follow(changed_ms, catalog)
        match event:
            case ev.HeartbeatReceived():
                self._heartbeat(stamp, event.heartbeat, catalog)
            case ev.LeadershipBegan():
                self._leadership(stamp, event, catalog)
            case ev.Subscribed():
                self._subscribed(stamp, event, catalog)
            case ev.Disconnected():
                self.subscribed = False
                self.offers.clear()
                self.windows.disconnected()
            case ev.OffersReceived():
                self._offers(stamp, event, catalog)
            case ev.OfferRescinded():
                self.offers.pop(event.offer_id, None)
            case ev.InverseOffersReceived():
                self.windows.asked(event.offers)
            case ev.InverseOfferRescinded():
                self.windows.rescinded(event.offer_id, stamp.now_ms)
            case ev.TaskUpdated():
                self._task(stamp, event.status, catalog)
            case ev.ExecutorEnded():
                self.endings.pop(event.executor_id, None)
            case ev.AgentRemoved():
                self._agent_removed(event.agent_id)
            case ev.ExecutorProbed():
                self._probed(stamp, event)
            case ev.ListingProgressed() | ev.ListingFinished():
                self._listing(event, catalog)
            case ev.JobRequested():
                self._selection(event, catalog)
            case ev.FleetRequested():
                self.revive_delay_ms = self.settings.revive_interval_ms_min
                self.sightings.nearest.clear()
            case ev.Ticked():
                self._ticked(stamp, catalog)
            case _:
                pass
        self.spares.follow(catalog, self, stamp.now_ms)  # last: what it sees is complete

    def apply(self, stamp: ev.Stamp, action: a.Action) -> None:
        """Count the action as done: the offer is spent, the call was made."""
        now_ms = stamp.now_ms
        match action:
            case a.Accept() | a.DestroyVolume() | a.Decline() | a.ReconcileOperations() | a.UpdateFramework():
                self.sightings.apply(stamp, action, self.offers)
                self.resizing.apply(action)
            case a.Kill():
                self._killed(now_ms, action)
            case a.AcceptInverse() | a.DeclineInverse():
                self.windows.answered(action.offer_ids, action.refuse_ms, now_ms)
            case a.Teardown():
                self.teardown_next_ms = now_ms + self.settings.kill_retry_ms
            case a.ShutdownExecutor() | a.ProbeExecutor() if action.launch_id:
                self._doubted(now_ms, action)
            case a.Reconcile(tasks=()):
                self.implicit_next_ms = now_ms + self.settings.reconcile_interval_ms
                self.implicit_sent_ms = now_ms if self.implicit_sent_ms is None else self.implicit_sent_ms
            case a.Reconcile():
                self.reconcile_next_ms = now_ms + self.reconcile_delay_ms
                self.reconcile_delay_ms = min(
                    2 * self.reconcile_delay_ms, self.settings.reconcile_delay_ms_max
                )
            case a.Suppress():
                self.suppressed, self.suppress_sent_ms = True, now_ms
            case a.Revive():
                self.suppressed, self.revived_ms = False, now_ms
                self.revive_delay_ms = min(2 * self.revive_delay_ms, self.settings.decline_ms)
            case a.StartListing():
                self.listings[action.dataset_id] = ListingSeen(action.attempt, action.clear_version)
            case a.StopListing():
                self.listings.pop(action.dataset_id, None)
                self.listed.pop(action.dataset_id, None)
            case _:
                pass

    def _killed(self, now_ms: int, action: a.Kill) -> None:
        ending = self.endings.pop(action.task_id, None)
        tries, since_ms = (1, now_ms) if ending is None else (ending.tries + 1, ending.since_ms)
        # Given up, a task that lives yet is a stray one at the next implicit reconciliation.
        if tries < self.settings.kill_tries_max:
            next_ms = now_ms + self.settings.kill_retry_ms * 2 ** (tries - 1)
            self.endings[action.task_id] = Ending(action.agent_id, next_ms, tries, since_ms)

    def _doubted(self, now_ms: int, action: a.ShutdownExecutor | a.ProbeExecutor) -> None:
        seen = self.launches[action.launch_id]
        seen.doubt = seen.doubt or Doubt()
        if isinstance(action, a.ProbeExecutor):
            seen.doubt.probing(now_ms, self.settings)
        else:
            seen.doubt.told_to_end(now_ms, self.settings)

    # --- questions

    def clearing_ms(self, now_ms: int) -> int:
        """Return for how long an uninstall has come no further, since Mesos is at hand."""
        return 0 if self._clearing_since_ms is None else now_ms - self._clearing_since_ms

    def believes(self, status: TaskStatus, catalog: Catalog, now_ms: int) -> bool:
        """Return whether Mesos knows what it says: a new master has not heard of the tasks of agents that are still to come."""
        if status.state != "TASK_UNKNOWN":
            return True
        launch = catalog.launch_of_task(status.task_id)
        seen = None if launch is None else self.launches.get(launch.launch_id)
        executor = None if launch is None else self.executors.get(launch.launch_id)
        silent_ms = self.settings.unreachable_delay_ms  # what never came up may be given up at once
        if executor is not None:
            silent_ms = self.silent_ms(executor, now_ms)
        elif seen is not None and seen.is_inherited:
            silent_ms = self.waited_ms(seen, now_ms)
        is_silent = silent_ms >= self.settings.unreachable_delay_ms
        return is_silent and now_ms - self.master_since_ms >= self.settings.unknown_patience_ms

    def silent_ms(self, seen: ExecutorSeen, now_ms: int) -> int:
        """Return for how long the executor was not heard while this process could have heard it."""
        return max(0, now_ms - max(seen.heard_ms, self._awake_ms))

    def waited_ms(self, seen: LaunchSeen, now_ms: int) -> int:
        """Return for how long the launch is known here while this process could have heard its executor."""
        return max(0, now_ms - max(seen.since_ms, self._awake_ms))

    def empty_ms(self, slot_id: int, now_ms: int) -> int:
        """Return for how long the slot has had no executor while this process could have heard one."""
        since_ms = self.empty_since_ms.get(slot_id, now_ms)
        return max(0, now_ms - max(since_ms, self._awake_ms))

    def executor_of(self, catalog: Catalog, slot_id: int) -> ExecutorSeen | None:
        """Return the slot's executor, if it has a launch whose executor was heard in this leadership."""
        return self.executors.get(catalog.slots[slot_id].launch_id)

    def held(self, seen: ExecutorSeen, dataset_id: int, generation: int) -> Held | None:
        return seen.datasets.get((dataset_id, generation))

    def address(self, catalog: Catalog, slot_id: int) -> SlotAddress:
        """Return where the slot's executor is; port 0: not running, or not heard yet."""
        launch_id = catalog.slots[slot_id].launch_id
        seen = self.executors.get(launch_id)
        if seen is None:
            return SlotAddress(slot_id, launch_id, 0, "", 0, "", "", "")
        return _address(seen.heartbeat)

    def backoff_ms(self, slot_id: int, now_ms: int) -> int:
        """Return how long the slot's next launch waits, in ms."""
        backoff = self.backoffs.get(slot_id)
        return 0 if backoff is None else max(0, backoff.until_ms - now_ms)

    def listed_digests(self) -> set[str]:
        """Return the roots of manifests that are stored, and that the catalog is about to name."""
        return {listed.manifested.digest for listed in self.listed.values()}

    def rate_bytes_per_s(self, job_id: str) -> int:
        samples = self.rates.get(job_id)
        if not samples or samples[-1][0] == samples[0][0]:
            return 0
        return max(0, (samples[-1][1] - samples[0][1]) * 1000 // (samples[-1][0] - samples[0][0]))

    # --- time and leadership

    def _pass_time(self, stamp: ev.Stamp) -> int:
        """Return when the event before was taken: what the catalog has new was decided then."""
        before_ms = stamp.now_ms if self._observed_ms is None else self._observed_ms
        # A long gap between two events is our own (a suspended machine): nobody could be heard in it.
        if stamp.now_ms - before_ms > self.settings.heartbeat_timeout_ms // 2:
            self._awake_ms = stamp.now_ms
        self._observed_ms = stamp.now_ms
        return before_ms

    def _leadership(self, stamp: ev.Stamp, event: ev.LeadershipBegan, catalog: Catalog) -> None:
        assert len(event.seed) >= 16, "launches' secrets are derived from it"
        self.seed = event.seed
        self.began_ms = self._awake_ms = stamp.now_ms
        self.sightings.began(catalog.fleet or event.fleet)
        self._awaited = set(catalog.launches)
        self.may_have_strays = catalog.launch_id_next - 1 > len(catalog.launches)
        self._follow(stamp.now_ms, catalog, is_inherited=True)

    def _complete(self, now_ms: int) -> None:
        if self.residency_complete:
            return
        self._awaited &= self.launches.keys()
        if not self._awaited or now_ms - self.began_ms >= self.settings.residency_grace_ms:
            self.residency_complete = True
            self.revision += 1

    def _follow(self, now_ms: int, catalog: Catalog, *, is_inherited: bool = False) -> None:
        missed = catalog.launch_revision - self._followed
        if not missed:
            return
        self._followed = catalog.launch_revision
        changes = catalog.launch_changes
        if missed <= len(changes):
            newest = list(islice(reversed(changes), missed))
            slot_ids, launch_ids = {slot_id for slot_id, _ in newest}, {launch_id for _, launch_id in newest}
        else:
            slot_ids = catalog.slots.keys() | self.empty_since_ms.keys() | self.backoffs.keys()
            launch_ids = catalog.launches.keys() | self.launches.keys()
        for launch_id in sorted(launch_ids):
            launch = catalog.launches.get(launch_id)
            if launch is None and launch_id in self.launches:
                self._launch_ended(now_ms, launch_id, catalog)
            elif launch is not None and launch_id not in self.launches:
                self.launches[launch_id] = LaunchSeen(launch, now_ms, is_inherited)
        for slot_id in slot_ids:
            slot = catalog.slots.get(slot_id)
            if slot is None:
                self.empty_since_ms.pop(slot_id, None)
                self.backoffs.pop(slot_id, None)
            elif slot.launch_id not in self.executors:
                self.empty_since_ms.setdefault(slot_id, now_ms)
        self._complete(now_ms)

    def _launch_ended(self, now_ms: int, launch_id: int, catalog: Catalog) -> None:
        gone = self.launches.pop(launch_id)
        launch = gone.launch
        seen = self.executors.pop(launch_id, None)
        if seen is not None:
            self.moves.changed(self.moves.noted(launch_id, seen.datasets), {})
        self.unanswered.pop(launch.task_id, None)
        if launch.slot_id not in catalog.slots:
            return
        self.revive_delay_ms = self.settings.revive_interval_ms_min
        if gone.is_moved or launch.agent_id in catalog.drains:
            self.backoffs.pop(launch.slot_id, None)  # it did not fail
            return
        backoff = self.backoffs.setdefault(launch.slot_id, BackOff())
        was_healthy = seen is not None and now_ms - seen.first_ms >= self.settings.flap_reset_ms
        first = self.settings.relaunch_delay_ms_min
        grown = min(2 * backoff.delay_ms, self.settings.relaunch_delay_ms_max)
        backoff.delay_ms = first if was_healthy or backoff.delay_ms == 0 else grown
        backoff.until_ms = now_ms + backoff.delay_ms

    def _ticked(self, stamp: ev.Stamp, catalog: Catalog) -> None:
        self._complete(stamp.now_ms)
        self.resizing.look(stamp, self.offers.values(), catalog)
        self.mass_silence.look(self.launches, self.executors, stamp.now_ms, self._awake_ms)
        if self._is_dirty:
            self._is_dirty = False
            self.revision += 1
        if catalog.uninstall is not None and self.subscribed:
            self._clears(stamp.now_ms, catalog)
        if len(catalog.drains) != self._drain_count:
            self._drain_count = len(catalog.drains)
            self.revive_delay_ms = self.settings.revive_interval_ms_min  # an agent may be of use again
        self.windows.forget(catalog.drains)
        self.moves.look(catalog, self, stamp.now_ms)
        self.revision += self.spares.forget(catalog, self, stamp.now_ms)
        jobs = catalog.active_jobs()
        for job in jobs:
            samples = self.rates.setdefault(job.job_id, deque(maxlen=RATE_SAMPLES_MAX))
            samples.append((stamp.now_ms, job_progress(catalog, self, job).bytes))
            while samples[-1][0] - samples[0][0] > self.settings.rate_window_ms:
                samples.popleft()
        self._forget_jobs(catalog, jobs)
        if self._removed_count != catalog.datasets_removed:
            self._removed_count = catalog.datasets_removed
            self._forget_datasets(catalog)

    def _clears(self, now_ms: int, catalog: Catalog) -> None:
        """Begin an uninstall's patience anew with each step that is made."""
        left = (len(catalog.launches), len(catalog.volumes), self.sightings.stray_count())
        if left != self._left:
            self._left, self._clearing_since_ms = left, now_ms
            self.cleared_ms = None if any(left) else now_ms
            self.revive_delay_ms = self.settings.revive_interval_ms_min

    def _forget_jobs(self, catalog: Catalog, jobs: list[Job]) -> None:
        """Drop what is known for the sake of jobs, but for these, the active ones."""
        active = {job.job_id for job in jobs}
        for job_id in [i for i in self.rates if i not in active]:
            del self.rates[job_id]
        of_datasets = [job for job in jobs if job.dataset_id in catalog.datasets]
        wanted = {(job.dataset_id, job.wanted_version) for job in of_datasets}
        wanted |= {(job.dataset_id, catalog.datasets[job.dataset_id].wanted_version) for job in of_datasets}
        for key in [k for k in self.selections if k not in wanted]:
            del self.selections[key]
        read = {job.dataset_id for job in jobs}
        for dataset_id in [i for i in self.reports if i not in read]:
            del self.reports[dataset_id]
        for reports in self.reports.values():
            reports.forget(active)

    def _forget_datasets(self, catalog: Catalog) -> None:
        """Drop what is known of datasets that were removed."""
        for dataset_id in [i for i in self.listings if i not in catalog.datasets]:
            del self.listings[dataset_id]
        for seen in self.executors.values():
            for held_key in [k for k in seen.datasets if k[0] not in catalog.datasets]:
                del seen.datasets[held_key]

    # --- Mesos

    def _subscribed(self, stamp: ev.Stamp, event: ev.Subscribed, catalog: Catalog) -> None:
        self.subscribed = True
        if event.master_id != self.master_id:
            self.master_since_ms = stamp.now_ms
        self.framework_id, self.master_id = event.framework_id, event.master_id
        self._left = ()
        self.offers.clear()
        # A subscription without suppressed roles gets offers: it is as good as a REVIVE.
        self.suppressed, self.revived_ms = False, stamp.now_ms
        self.revive_delay_ms = self.settings.revive_interval_ms_min
        self.sightings.subscribed(stamp.now_ms)
        self.windows.subscribed(catalog.drains.values(), stamp.now_ms)
        self.unanswered = {launch.task_id: launch.agent_id for launch in catalog.launches.values()}
        self.reconcile_delay_ms = self.settings.reconcile_delay_ms_min
        self.reconcile_next_ms = self.implicit_next_ms = stamp.now_ms
        self.implicit_sent_ms = None

    def _offers(self, stamp: ev.Stamp, event: ev.OffersReceived, catalog: Catalog) -> None:
        if not self.subscribed:
            return  # of a stream that ended
        self.windows.offered(event.offers, stamp.now_ms)
        for offer in event.offers:
            self.offers[offer.offer_id] = offer
            self.agents.pop(offer.agent_id, None)
            self.agents[offer.agent_id] = AgentSeen(offer.agent_id, offer.hostname, offer.attributes)
        while len(self.agents) > AGENTS_MAX:
            del self.agents[next(iter(self.agents))]
        ending = {x.agent_id for x in self.endings.values()}
        proof = self.sightings.take_offers(stamp.now_ms, self.offers, catalog, ending)
        self.newer_journal = self.newer_journal or proof
        if self.resizing.nearest:
            self.resizing.look(stamp, self.offers.values(), catalog)

    def _task(self, stamp: ev.Stamp, status: TaskStatus, catalog: Catalog) -> None:
        if not self.believes(status, catalog, stamp.now_ms):
            return  # asked again
        self.unanswered.pop(status.task_id, None)
        if status.state in TERMINAL_STATES:
            self.endings.pop(status.task_id, None)
        launch = catalog.launch_of_task(status.task_id)
        seen = None if launch is None else self.launches.get(launch.launch_id)
        if seen is not None:
            if seen.task_state == "TASK_UNREACHABLE" != status.state:
                # Its agent is back, and perhaps sooner than the executor's next heartbeat.
                seen.doubt = Doubt(is_away=True)
            seen.task_state = status.state
            seen.task_reason = status.message or status.reason
            seen.is_moved = status.reason == AGENT_DRAINING

    def _agent_removed(self, agent_id: str) -> None:
        self.agents.pop(agent_id, None)
        for offer_id in [o.offer_id for o in self.offers.values() if o.agent_id == agent_id]:
            del self.offers[offer_id]

    # --- executors and children

    def _heartbeat(self, stamp: ev.Stamp, heartbeat: Heartbeat, catalog: Catalog) -> None:
        self.newer_journal = self.newer_journal or proof_of_newer_journal(catalog, heartbeat)
        if judge(catalog, heartbeat) != "ok":
            return
        seen = self.executors.get(heartbeat.launch_id)
        if seen is not None and seen.heartbeat.incarnation != heartbeat.incarnation:
            if self.silent_ms(seen, stamp.now_ms) < self.settings.heartbeat_timeout_ms:
                return  # the first to answer for a launch keeps it while it lives
            seen = None
        if seen is not None and heartbeat.sequence <= seen.heartbeat.sequence:
            return  # sent twice, or overtaken
        known = self.executors.get(heartbeat.launch_id)
        noted: dict[Key, int] = {}
        if known is not None and (seen is None or tells_of_loss(heartbeat)):
            noted = self.moves.noted(heartbeat.launch_id, known.datasets)
        last = seen
        if seen is None:
            seen = ExecutorSeen(heartbeat, stamp.now_ms, stamp.now_ms, needs_whole=True)
            self.executors[heartbeat.launch_id] = seen
            self.empty_since_ms.pop(heartbeat.slot_id, None)
        follows = last is not None and heartbeat.sequence == last.heartbeat.sequence + 1
        moved = last is None or _address(last.heartbeat) != _address(heartbeat)
        seen.needs_whole = not heartbeat.whole and (seen.needs_whole or not follows)
        seen.heard_ms = stamp.now_ms
        self._lives(heartbeat.launch_id)
        seen.heartbeat = replace(heartbeat, datasets=())
        self._residency(stamp, seen, heartbeat, catalog, is_new=last is None)
        self.moves.changed(noted, seen.datasets)
        if not seen.needs_whole:
            self._awaited.discard(heartbeat.launch_id)
            self._complete(stamp.now_ms)
        if moved and len(catalog.slots) <= ADDRESSES_AT_ONCE_MAX:
            self.revision += 1
        elif moved:
            self._is_dirty = True

    def _lives(self, launch_id: int) -> None:
        launch = self.launches.get(launch_id)
        if launch is not None:
            launch.doubt = None

    def _probed(self, stamp: ev.Stamp, event: ev.ExecutorProbed) -> None:
        seen = self.launches.get(event.launch_id)
        if seen is not None and seen.doubt is not None:
            seen.doubt.probed(stamp.now_ms, is_there=event.is_there)

    def _residency(
        self, stamp: ev.Stamp, seen: ExecutorSeen, heartbeat: Heartbeat, catalog: Catalog, *, is_new: bool
    ) -> None:
        before = seen.datasets
        if heartbeat.whole:
            seen.datasets = {}
        told = {residency.dataset_id for residency in heartbeat.datasets}
        for dataset_id, reports in self.reports.items():
            if is_new or heartbeat.whole or dataset_id in told:  # silence in a whole one is news too
                reports.mark(heartbeat.slot_id)
        for residency in heartbeat.datasets:
            if residency.dataset_id not in catalog.datasets:
                continue  # removed, and about to be freed
            key = (residency.dataset_id, residency.generation)
            held = before.get(key) or Held(residency, bytearray())
            _update(held, residency, is_exact=not seen.needs_whole)
            if not seen.needs_whole and popcount(held.bitmap) != residency.full_blocks:
                seen.needs_whole = True  # an acknowledgement was lost, and a change with it
            if residency.unfit_blocks == 0:
                held.unfit_since_ms = None
            elif held.unfit_since_ms is None:
                held.unfit_since_ms = stamp.now_ms
            seen.datasets[key] = held

    def _listing(self, event: ev.ListingProgressed | ev.ListingFinished, catalog: Catalog) -> None:
        listing = self.listings.get(event.dataset_id)
        if listing is None or listing.attempt != event.attempt:
            return
        if isinstance(event, ev.ListingProgressed):
            listing.files, listing.bytes = event.files, event.bytes
            return
        del self.listings[event.dataset_id]
        if event.manifested is not None:
            self.listed[event.dataset_id] = Listed(event.attempt, listing.clear_version, event.manifested)
            self._drop_listed(catalog)

    def _drop_listed(self, catalog: Catalog) -> None:
        for dataset_id, listed in list(self.listed.items()):
            dataset = catalog.datasets.get(dataset_id)
            is_awaited = dataset is not None and dataset.is_listing and dataset.attempt == listed.attempt
            if not is_awaited or (dataset is not None and dataset.current is not None):
                del self.listed[dataset_id]

    def _selection(self, event: ev.JobRequested, catalog: Catalog) -> None:
        selection = event.selection
        if selection is None or event.plan_only:
            return
        dataset = catalog.datasets.get(selection.dataset_id)
        if dataset is not None and dataset.wanted_version == selection.wanted_version:
            self.selections[selection.dataset_id, selection.wanted_version + 1] = selection


def popcount(bitmap: bytes | bytearray) -> int:
    """Return the number of set bits.

    >>> popcount(bytes([3, 0, 128]))
    3
    """
    return int.from_bytes(bitmap, "little").bit_count()


def _update(held: Held, residency: Residency, *, is_exact: bool) -> None:
    is_change = residency.bitmap is not None or residency.added or residency.removed
    held.residency = replace(residency, bitmap=None, added=(), removed=()) if is_change else residency
    if residency.bitmap is not None:
        held.bitmap = bytearray(residency.bitmap)
    if not is_exact:
        return
    for index in residency.removed:
        if index >> 3 < len(held.bitmap):
            held.bitmap[index >> 3] &= ~(1 << (index & 7)) & 0xFF
    if residency.added:
        held.bitmap.extend(bytes(max(0, (max(residency.added) >> 3) + 1 - len(held.bitmap))))
    for index in residency.added:
        held.bitmap[index >> 3] |= 1 << (index & 7)


def _address(heartbeat: Heartbeat) -> SlotAddress:
    return SlotAddress(
        heartbeat.slot_id,
        heartbeat.launch_id,
        heartbeat.incarnation,
        heartbeat.host,
        heartbeat.port,
        heartbeat.socket_path,
        heartbeat.abstract_socket,
        heartbeat.boot_id,
    )
