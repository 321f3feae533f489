"""A cluster in virtual time: schedulers, ZooKeeper, Mesos, agents, executors, users; seeded, and checked at every step.

The world is the truth that the core only hears of: messages are lost, sent twice, delayed and overtaken, processes
die, stop and go on, sessions expire, servers lag, clocks jump. With one scheduler it is a small cluster, with three one that
fails over. Everything random comes from one generator, so a seed is a whole history.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sim.embedded_mesos import SETTINGS as MESOS_SETTINGS
from sim.embedded_mesos import Mesos
from sim.faults import Faults
from sim.leading import MIB, SETTINGS, Leading, Respond
from sim.scheduler import SimScheduler
from sim.timeline import Timeline
from sim.truth import Truth
from sim.users import Users
from sim.zk_tree import Change
from sim.zookeeper import Ensemble, Server
from stoker.executor.messages import HeartbeatAnswer, decode_answer, decode_heartbeat, encode
from stoker.framework.core.events import HeartbeatReceived
from stoker.framework.model import FleetSpec, Settings
from stoker.mesos.embedded.core.values import Settings as MesosSettings

SESSION_TIMEOUT_MS = 6_000
HTTP_TIMEOUT_MS = 5_000
WALL_JUMP_MS_MAX = 3_600_000
QUIET_MS = 15_000  # after the loss of an executor: its blocks are no more elsewhere
SLACK_MS = 5_000  # between what a leader counts and what the ensemble sees


class World:
    def __init__(
        self,
        seed: int,
        *,
        schedulers: int = 1,
        agents: int = 4,
        instances: int = 3,
        servers: int = 3,
        faults: Faults | None = None,
        timeout_ms: int = SESSION_TIMEOUT_MS,
        disk_bytes: int = 0,
        scheduler_class: type[SimScheduler] = SimScheduler,
        settings: Settings = SETTINGS,
        mesos_settings: MesosSettings = MESOS_SETTINGS,
        period_ms: int = 1_000,
    ) -> None:
        """`period_ms`: how often executors work and report, and how often chance strikes."""
        self.seed = seed
        self._settings = settings
        self.timeline = timeline = Timeline(seed)
        self.truth = Truth()
        self._ended_ms: dict[int, int] = {}  # launch id
        self.ensemble = Ensemble(
            timeline,
            size=servers,
            on_commit=self._committed,
            delay_ms_max=timeline.random.choice((2, 4, 30, 100)),
            lag_ms_max=timeline.random.choice((1, 20, 300)),
            tick_ms=period_ms // 10,
        )
        self.mesos = Mesos(
            timeline,
            agents,
            promised=lambda task_id: self.truth.catalog.launch_of_task(task_id),
            planned=lambda launch_id: self.truth.planned.get(launch_id),
            volumes=lambda: self.truth.catalog.volumes,
            was_planned=lambda volume_id: volume_id in self.truth.volumes_planned,
            is_robbed=lambda epoch: epoch in self.truth.robbed,
            settings=mesos_settings,
        )
        spec = FleetSpec(instances, 64 * MIB, role="stoker", disk_bytes=disk_bytes)
        self.schedulers = [
            scheduler_class(
                f"scheduler-{i}", timeline, self.ensemble, self.mesos, self.truth, spec=spec, timeout_ms=timeout_ms, settings=settings
            )
            for i in range(schedulers)
        ]  # fmt: skip
        urls = tuple(scheduler.url for scheduler in self.schedulers)
        self.users = Users(timeline, lambda: self.faults, urls, self.request, self.truth, spec)
        self.set_faults(faults or Faults())
        self.checks_drains = False  # nobody frees or removes anything meanwhile
        self.drained_blocks = 0
        self.on_batch: Callable[[int], None] = lambda number: None  # a batch got durable: its number
        self.on_epoch: Callable[[int], None] = lambda epoch: None  # somebody has taken the epoch
        self.on_passed: Callable[[SimScheduler, str], None] = lambda scheduler, point: None
        for scheduler in self.schedulers:
            scheduler.passed = lambda point, scheduler=scheduler: self.on_passed(scheduler, point)  # type: ignore[misc]
        timeline.every(period_ms, self.second)

    def set_faults(self, faults: Faults) -> None:
        self.faults = self.mesos.faults = faults

    @property
    def leader(self) -> Leading:
        """The one leadership there is; for when all is quiet."""
        leaders = self.leaders()
        assert len(leaders) == 1, f"{len(leaders)} lead"
        return leaders[0]

    def leaders(self) -> list[Leading]:
        """All who believe that they lead; some may be wrong."""
        return [s.leading for s in self.schedulers if s.is_leading and s.leading is not None]

    def run(self, duration_ms: int) -> None:
        try:
            self.timeline.run(duration_ms)
        except Exception as error:
            error.add_note(self.describe())
            raise

    def at(self, delay_ms: int, what: Callable[[], None]) -> None:
        self.timeline.at(delay_ms, what)

    def _committed(self, session_id: int, changes: tuple[Change, ...]) -> None:
        before, epoch = self.truth.commits, self.truth.epoch
        self.truth.see(self.ensemble.head, changes)
        if self.truth.epoch != epoch:
            self.on_epoch(self.truth.epoch)
        if self.truth.commits != before:
            self._check_names()
            self._check_drained()
            self.on_batch(self.truth.commits)

    def _check_names(self) -> None:
        """A dataset that has become READY is the only one of its name that any living executor serves.

        But for one that was given up long ago and that no KILL reaches.
        """
        for launch_id in self.truth.ended:
            self._ended_ms[launch_id] = self.timeline.now_ms
        for dataset_id in self.truth.listed:
            dataset = self.truth.catalog.datasets.get(dataset_id)
            for executor in self.mesos.executors.values() if dataset is not None else ():
                ended_ms = self._ended_ms.get(executor.launch.launch_id, self.timeline.now_ms)
                if self.timeline.now_ms - ended_ms < self._settings.ending_grace_ms - SLACK_MS:
                    old = {i for i, name in executor.served.items() if dataset and name == dataset.name}
                    assert old <= {dataset_id}, f"{executor.task_id} serves {old} when {dataset_id} is READY"
        self.truth.ended.clear()
        self.truth.listed.clear()

    def _check_drained(self) -> None:
        """What a drained executor held is held by others when it is ended, unless one of them was lost just then."""
        is_quiet = self.timeline.now_ms - self.mesos.deaths_ms > QUIET_MS
        executors = self.mesos.executors.values()
        leaving = {x.launch.launch_id for x in executors if x.launch.agent_id in self.truth.catalog.drains}
        staying = [x for x in executors if x.launch.launch_id not in leaving]
        for launch_id in self.truth.drained if is_quiet and self.checks_drains else ():
            for executor in (x for x in executors if x.launch.launch_id == launch_id):
                for key, held in executor.held.items():
                    dataset = self.truth.catalog.datasets.get(key[0])
                    others = set().union(*(x.held.get(key, set()) for x in staying))
                    assert dataset is None or held <= others, f"{held - others} of {key} are dropped"
                    self.drained_blocks += len(held)
        self.truth.drained.clear()

    # --- the network between executors, users and schedulers

    def message(self, what: Callable[[], None]) -> None:
        """Deliver `what` as networks do: late, perhaps twice, perhaps never."""
        timeline, faults = self.timeline, self.faults
        if timeline.chance(faults.message_loss):
            return
        for _ in range(2 if timeline.chance(faults.message_twice) else 1):
            late = timeline.chance(faults.message_late)
            timeline.at(timeline.between(0, faults.late_ms_max if late else faults.delay_ms_max), what)

    def request(self, url: str, serve: Callable[[Leading], None], respond: Respond) -> None:
        """Make an HTTP request of a scheduler: `serve` is called where it leads; the response may come, even twice."""
        scheduler = next(s for s in self.schedulers if s.url == url)

        def back(how: str, value: Any) -> None:
            self.message(lambda: respond(how, value))

        def arrive() -> None:
            if not scheduler.process.is_alive:
                back("refused", None)
            else:
                scheduler.process.run(lambda: scheduler.http(serve, back))

        self.message(arrive)

    # --- executors

    def heartbeats(self) -> None:
        for executor in list(self.mesos.executors.values()):
            if executor.is_hung:
                continue
            executor.work()
            if not executor.is_asking and not self.mesos.agent_of(executor).is_silent:
                self._heartbeat(executor.task_id)

    def _heartbeat(self, task_id: str) -> None:
        executor = self.mesos.executors[task_id]
        executor.is_asking = True
        data = encode(executor.heartbeat())
        is_over = False

        def respond(how: str, value: Any) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._heartbeat_answered(task_id, how, value)
            elif how == "answer":
                self._take_answer(task_id, value)  # late, or for the second time

        url = executor.schedulers[0]
        self.request(
            url,
            lambda leading: leading.ask(
                lambda reply_id: HeartbeatReceived(decode_heartbeat(data), reply_id),
                lambda how, value: self._send_answer(how, value, respond),
            ),
            respond,
        )
        self.timeline.at(HTTP_TIMEOUT_MS, lambda: respond("timeout", None))

    def _send_answer(self, how: str, value: Any, respond: Respond) -> None:
        data = encode(value) if isinstance(value, HeartbeatAnswer) else b""
        self.message(lambda: respond(how, decode_answer(data) if data else value))

    def _heartbeat_answered(self, task_id: str, how: str, value: Any) -> None:
        executor = self.mesos.executors.get(task_id)
        if executor is None:
            return
        executor.is_asking = False
        if how == "answer":
            self._take_answer(task_id, value)
        elif how == "redirect":
            executor.redirected(value)
        else:
            executor.ask_next()

    def _take_answer(self, task_id: str, answer: HeartbeatAnswer) -> None:
        executor = self.mesos.executors.get(task_id)
        if executor is None or executor.is_hung or executor.refuses(answer.epoch):
            return
        executor.answered(answer)
        if answer.status == "stale":
            assert self.truth.catalog.launch_of_task(task_id) is None, (
                f"{task_id} is told to end but promised"
            )
            self.mesos.end_executor(task_id, "TASK_FINISHED")

    # --- what happens each second

    def second(self) -> None:
        self.mesos.second()
        self.heartbeats()
        self.users.second()
        self._want_agents()
        for scheduler in self.schedulers:
            self._harm_scheduler(scheduler)
        for server in self.ensemble.servers:
            self._harm_server(server)

    def _want_agents(self) -> None:
        agents = list(self.mesos.agents.values())
        if self.faults.maintenance and self.timeline.chance(self.faults.maintenance * len(agents)):
            agent = self.timeline.random.choice(agents)
            if not agent.window_ms:
                process = self.schedulers[0].process
                self.mesos.want_back(agent, process.wall_ms() - process.wall_jump_ms)
        if self.faults.drains and self.timeline.chance(self.faults.drains):
            self.users.ask_drain(self.timeline.random.choice(agents).agent_id)

    def _harm_scheduler(self, scheduler: SimScheduler) -> None:
        chance, faults = self.timeline.chance, self.faults
        down_ms = self.timeline.between(1, faults.down_ms_max)
        if chance(faults.clock_jump):
            scheduler.process.wall_jump_ms = self.timeline.between(-WALL_JUMP_MS_MAX, WALL_JUMP_MS_MAX)
        if scheduler.process.is_alive and chance(faults.scheduler_unseated):
            self.unseat(scheduler)
        if not scheduler.process.is_alive or scheduler.process.is_stopped:
            return
        if chance(faults.scheduler_killed):
            scheduler.kill()
            self.timeline.at(down_ms, scheduler.start)
        elif chance(faults.scheduler_ended):
            scheduler.end()
            self.timeline.at(1_000 + down_ms, scheduler.start)
        elif chance(faults.scheduler_stopped):
            scheduler.process.stop()
            self.timeline.at(down_ms, scheduler.process.go_on)
        elif chance(faults.scheduler_cut):
            self.cut(scheduler, down_ms)
        if chance(faults.session_expired):
            self.expire(scheduler)
        if chance(faults.doubt):
            self.timeline.at(self.timeline.between(0, 999), lambda: self.break_connection(scheduler))

    def cut(self, scheduler: SimScheduler, duration_ms: int) -> None:
        """Cut a scheduler off ZooKeeper, or off some of its servers; what is sent meanwhile may come later."""
        lines = self.ensemble.lines(scheduler.name)
        lines = self.timeline.random.sample(lines, self.timeline.between(1, len(lines)))
        self.timeline.tell(f"--- {scheduler.name} is cut off {len(lines)} servers")
        for line in lines:
            line.is_cut = True
        self.timeline.at(duration_ms, lambda: [line.heal() for line in lines])

    def expire(self, scheduler: SimScheduler) -> None:
        """End its session before its time, as an operator may."""
        client = scheduler.client
        session = self.ensemble.sessions.get(client.session_id) if client is not None else None
        if session is not None and self.ensemble.leader is not None:
            self._rob(scheduler)
            self.ensemble.expire(session)

    def unseat(self, scheduler: SimScheduler) -> None:
        """Delete its election node, as an operator may, or a bug: its session lives, and another one leads."""
        client = scheduler.client
        session = self.ensemble.sessions.get(client.session_id) if client is not None else None
        if session is not None and self.ensemble.leader is not None:
            self._rob(scheduler)
            self.timeline.tell(f"--- {scheduler.name} loses its election node")
            self.ensemble.delete(self.ensemble.head.ephemerals(session.session_id))

    def _rob(self, scheduler: SimScheduler) -> None:
        if self.truth.leaders and self.truth.leaders[-1].startswith(scheduler.name + " "):
            self.truth.robbed.add(self.truth.epoch)

    def break_connection(self, scheduler: SimScheduler) -> None:
        if scheduler.client is not None and scheduler.process.is_alive:
            scheduler.client.drop()

    def _harm_server(self, server: Server) -> None:
        chance, faults = self.timeline.chance, self.faults
        down_ms = self.timeline.between(1, faults.down_ms_max)
        if not server.is_well:
            return
        if chance(faults.server_killed):
            self.ensemble.kill(server)
            self.timeline.at(down_ms, lambda: self.ensemble.restart(server))
        elif chance(faults.server_stopped):
            server.stop()
            self.timeline.at(down_ms, server.go_on)
        elif chance(faults.server_isolated):
            server.is_isolated = True
            self.timeline.at(down_ms, lambda: setattr(server, "is_isolated", False))
        elif chance(faults.server_lags):
            server.lag_ms_max = 3_000
            self.timeline.at(down_ms, lambda: setattr(server, "lag_ms_max", self.ensemble.lag_ms_max))

    # --- in the end

    def settle(self, duration_ms: int) -> None:
        """Let nothing go wrong any more, and time pass."""
        self.set_faults(Faults.none())
        self.timeline.tell("--- all faults end")
        for scheduler in self.schedulers:
            scheduler.process.wall_jump_ms = 0  # maintenance windows are wall time
        for executor in self.mesos.executors.values():
            if executor.is_hung and self.timeline.chance(0.5):
                executor.is_hung = False
        self.run(duration_ms)

    def describe(self) -> str:
        test = os.environ.get("PYTEST_CURRENT_TEST", "tests/sim").split(" ")[0]
        return f"seed={self.seed} epoch={self.truth.epoch} records={self.truth.next_index}\n{self.timeline.describe()}\nrun it again: STOKER_SIM_SEED={self.seed} STOKER_SIM_RUNS=1 python -m pytest '{test}'"
