"""An agent: its life, its executors from launch to the end of their process, and the executor API behind them.

Theory of operation. An agent is RECOVERING (it has started and reads what it kept), UP, FROZEN (stopped: what comes waits), ENDING
(told to go: it waits for its executors) or DOWN. What it says to a master is lost unless it is registered; its updates wait.
Executors of frameworks that checkpoint outlive their agent: back, it gives them a time in which to subscribe again, and only then it
registers. What it does with them otherwise is in `containers`.

Methods take the time and put what is to be done into the outbox; processes are started and killed by the shell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from stoker.mesos.embedded.core import recovery
from stoker.mesos.embedded.core.calls import Answer
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.commands import command_executor, default_executor_command
from stoker.mesos.embedded.core.containers import NO_STATUS, Containers, Life, Site
from stoker.mesos.embedded.core.executors import Executor, FrameworkOnAgent, Phase
from stoker.mesos.embedded.core.messages import TERMINAL_STATES
from stoker.mesos.embedded.core.operations import Conversion
from stoker.mesos.embedded.core.ports import DrainConfig, Forgotten, MasterPort
from stoker.mesos.embedded.core.recovery import AgentCheckpoint
from stoker.mesos.embedded.core.updates import Taken
from stoker.mesos.embedded.core.values import (
    AgentEnded,
    AgentNamed,
    AgentSpec,
    format_duration,
)

ACCEPTED = Answer(202)


class Agent(Containers):
    """The state of one agent; see the module's text."""

    def __init__(self, spec: AgentSpec, master: MasterPort | None, site: Site) -> None:
        super().__init__(spec, master, site)
        self.registered_ms = 0  # when it registered the last time; the master's pings are counted from there
        self._was = Life.DOWN  # before it was frozen
        self._kept = AgentCheckpoint(spec.agent_id)
        self._held: list[tuple[bool, Callable[[int], None]]] = []  # (about a process?, what is to be done)
        self._recovered_ms: int | None = None
        self._reregistration_ms: int | None = None
        self._registration_ms: int | None = None

    # Its life.

    def boot(self, now_ms: int) -> None:
        """Start for the first time, with nothing to recover, and register at once."""
        self._now_ms, self.life = now_ms, Life.UP
        self._updates.pause()
        self._register(now_ms)

    def start(self, spec: AgentSpec, kept: AgentCheckpoint, now_ms: int, *, rebooted: bool = False) -> None:
        """Start again with what it `kept`; `rebooted`: its executors died with the machine."""
        assert self.life is Life.DOWN
        self._now_ms, self.life, self.spec, self._draining = now_ms, Life.RECOVERING, spec, None
        self._updates = self._new_updates()
        self._updates.pause()
        self._estate = self._new_estate()
        self._estate.restore(kept.estate, now_ms)
        self.frameworks = recovery.restore(kept, self._updates)
        executors = [e for framework in self.frameworks.values() for e in framework.executors.values()]
        self._containers = {e.container_id: e for e in executors if e.phase is not Phase.TERMINATED}
        self._site.containers |= dict.fromkeys(self._containers, spec.number)
        for executor in executors if rebooted else ():
            executor.is_recovered = False
            gone = partial(self.process_exited, executor.container_id, NO_STATUS)
            self._held.append((True, gone))
        self._recovered_ms = now_ms + self._settings.agent_recovery_ms
        self._arm(self._recovered_ms)

    def die(self, now_ms: int) -> None:
        """End at once, as by SIGKILL: executors of frameworks that checkpoint live on."""
        self._kept = self.checkpoint()
        for executor in self._containers.values():
            self._drop_stream(executor, abort=True)
            if executor.reap_ms is not None:
                gone = partial(self.process_exited, executor.container_id, executor.status)
                self._held.append((True, gone))
        self.life, self.is_registered = Life.DOWN, False
        self.frameworks, self._containers = {}, {}
        self._held = [item for item in self._held if item[0]]
        self._recovered_ms = self._reregistration_ms = self._registration_ms = None
        self._out.items.append(AgentEnded(self.spec.number))

    def freeze(self) -> None:
        """Stop, as by SIGSTOP: what is said to it waits."""
        assert self.life not in (Life.FROZEN, Life.DOWN)
        self._was, self.life = self.life, Life.FROZEN

    def thaw(self, now_ms: int) -> None:
        """Go on, and do what has come meanwhile."""
        assert self.life is Life.FROZEN
        self.life = self._was
        self._replay(now_ms)
        self.tick(now_ms)

    def leave(self, now_ms: int) -> None:
        """End in order, as by SIGUSR1: unregister, shut down all executors, then end."""
        if self.is_registered and self._master is not None:
            self._master.unregister_agent(self.spec.agent_id, now_ms)
        self._end(now_ms)

    def checkpoint(self) -> AgentCheckpoint:
        """Return what is on its disk."""
        if self.life is Life.DOWN:
            return self._kept
        return recovery.checkpoint(self.spec.agent_id, self.frameworks, self._updates, self._estate)

    def find_master(self, master: MasterPort, at_ms: int | None) -> None:
        """Learn of the master that leads now; an agent that was registered with another registers at `at_ms`."""
        self._master = master
        if at_ms is not None and self.life in (Life.UP, Life.FROZEN) and self._recovered_ms is None:
            self._register_at(at_ms + self._settings.registration_backoff_ms)

    def lose_master(self) -> None:
        """The master is gone: what this agent says is lost until it has registered again."""
        self._master, self.is_registered, self._registration_ms = None, False, None
        self._updates.pause()

    def register_again(self, now_ms: int) -> None:
        """The master has removed this agent while it did not answer: it registers again."""
        self.is_registered = False
        self._updates.pause()
        self._register_at(now_ms + self._settings.registration_backoff_ms)

    # What the master says.

    def run_task(self, framework: Message, task: Message, now_ms: int) -> None:
        """Deliver a task to its executor, which is started if it is not there."""
        if self._hold(partial(self.run_task, framework, task)):
            return
        self._now_ms = now_ms
        framework_id, task_id = framework["id"]["value"], task["task_id"]["value"]
        known = self.frameworks.setdefault(framework_id, FrameworkOnAgent(framework))
        if known.terminating:
            return  # as a real one, it says nothing of a framework that it was told to end
        info = task.get("executor")
        executor = known.executors.get(task_id if info is None else info["executor_id"]["value"])
        if executor is None:
            made = info or command_executor(task, framework_id, self._settings.command_executor)
            links = self._estate.links((*made.get("resources", ()), *task.get("resources", ())))
            executor = self._start_executor(known, made, links, now_ms, is_command=info is None)
        elif info is None:
            text = "Cannot reuse an already existing executor"
            self._report(executor, task_id, known.lost("TASK_DROPPED"), "REASON_TASK_INVALID", text)
            return
        self._take_tasks(known, executor, [task], now_ms)

    def run_group(self, framework: Message, executor: Message, tasks: list[Message], now_ms: int) -> None:
        """Deliver tasks together to their executor, which is started if it is not there."""
        if self._hold(partial(self.run_group, framework, executor, tasks)):
            return
        self._now_ms = now_ms
        known = self.frameworks.setdefault(framework["id"]["value"], FrameworkOnAgent(framework))
        if known.terminating:
            return
        there = known.executors.get(executor["executor_id"]["value"])
        if there is None:
            if executor.get("type") == "DEFAULT":
                program = default_executor_command(executor, self._settings.command_executor)
                executor = executor | {"command": program}
            resources = [item for holder in (executor, *tasks) for item in holder.get("resources", ())]
            there = self._start_executor(known, executor, self._estate.links(resources), now_ms)
        names = tuple(task["task_id"]["value"] for task in tasks)
        there.groups |= dict.fromkeys(names, names)
        self._take_tasks(known, there, tasks, now_ms)

    def kill_task(self, framework_id: str, task_id: str, policy: Message | None, now_ms: int) -> None:
        """Pass a KILL on; a task that its executor has not got yet is killed here."""
        if self._hold(partial(self.kill_task, framework_id, task_id, policy)):
            return
        self._now_ms = now_ms
        for executor in self._executors_of(framework_id):
            if task_id in executor.queued:
                text = "Killed before delivery to the executor"
                for name in executor.groups.pop(task_id, (task_id,)):
                    executor.queued.pop(name, None)
                    self._report(executor, name, "TASK_KILLED", "REASON_TASK_KILLED_DURING_LAUNCH", text)
                return
            if task_id in executor.launched and executor.phase is Phase.RUNNING:
                kill: Message = {"task_id": {"value": task_id}}
                if policy is not None:
                    kill["kill_policy"] = policy
                self._out.send(executor.stream, {"type": "KILL", "kill": kill})
                return

    def acknowledge(self, framework_id: str, task_id: str, uuid: str, now_ms: int) -> None:
        """The scheduler acknowledged an update."""
        if self._hold(partial(self.acknowledge, framework_id, task_id, uuid)):
            return
        self._now_ms = now_ms
        if self._updates.acknowledge(framework_id, task_id, uuid, now_ms):
            for executor in self._executors_of(framework_id):
                executor.launched.pop(task_id, None)
                executor.states.pop(task_id, None)
            self._forget_ended(framework_id)

    def shutdown_executor(self, framework_id: str, executor_id: str, now_ms: int) -> None:
        """Tell an executor to end, and kill it when its grace is over."""
        if self._hold(partial(self.shutdown_executor, framework_id, executor_id)):
            return
        framework = self.frameworks.get(framework_id)
        executor = framework.executors.get(executor_id) if framework else None
        if executor is not None:
            self._shut_down(executor, now_ms)

    def shutdown_framework(self, framework_id: str, now_ms: int) -> None:
        """Shut down all executors of a framework that is removed; nothing of it is reported any more."""
        if self._hold(partial(self.shutdown_framework, framework_id)):
            return
        self._estate.forget(framework_id)
        framework = self.frameworks.get(framework_id)
        if framework is None:
            return
        framework.terminating = True
        self._updates.forget(framework_id)
        for executor in list(framework.executors.values()):
            self._shut_down(executor, now_ms)
        self._forget_ended(framework_id)

    def shutdown_all(self, now_ms: int) -> None:
        """Shut down every executor: the whole cluster ends."""
        for executor in list(self._containers.values()):
            self._shut_down(executor, now_ms)

    def update_framework(self, framework: Message, now_ms: int) -> None:
        """The framework subscribed again: what it has not acknowledged is sent at once."""
        if self._hold(partial(self.update_framework, framework)):
            return
        self._now_ms = now_ms
        known = self.frameworks.get(framework["id"]["value"])
        if known is not None:
            known.info = framework
        self._updates.resend(framework["id"]["value"], now_ms)
        self._estate.resend(now_ms, framework["id"]["value"])

    def send_message(self, framework_id: str, executor_id: str, data: str, now_ms: int) -> None:
        """Pass a MESSAGE on; lost if the executor is not there."""
        if self._hold(partial(self.send_message, framework_id, executor_id, data)):
            return
        framework = self.frameworks.get(framework_id)
        executor = framework.executors.get(executor_id) if framework else None
        if executor is not None and executor.phase is Phase.RUNNING:
            self._out.send(executor.stream, {"type": "MESSAGE", "message": {"data": data}})

    def named(self, agent_id: str) -> None:
        """The master gave this agent its id."""
        self.spec = replace(self.spec, agent_id=agent_id)
        self._out.items.append(AgentNamed(self.spec.number, agent_id))

    def registered(self, agent_id: str, forgotten: tuple[Forgotten, ...], now_ms: int) -> None:
        """The master took this agent; `forgotten` are tasks that never came here: they are dropped."""
        assert agent_id == self.spec.agent_id
        self.is_registered, self._registration_ms, self.registered_ms = True, None, now_ms
        for framework_id, task_id, state in forgotten:
            text = "Reconciliation: task unknown to the agent"
            status = self._status(task_id, state, "REASON_RECONCILIATION", text)
            self._updates.add(framework_id, status, now_ms)
        self._updates.resume(now_ms)
        self._estate.resend(now_ms)

    def apply_operation(
        self, framework_id: str, operation_id: str | None, conversion: Conversion, now_ms: int
    ) -> None:
        """Do an operation on resources; nothing waits for it, so a frozen agent does it as well."""
        self._site.changed.add(self.spec.number)
        self._estate.apply(framework_id, operation_id, conversion, now_ms)

    def acknowledge_operation(self, framework_id: str, operation_id: str, uuid: str, now_ms: int) -> None:
        """The scheduler acknowledged the status of an operation."""
        if not self._hold(partial(self.acknowledge_operation, framework_id, operation_id, uuid)):
            self._estate.acknowledge(framework_id, operation_id, uuid)

    def drain(self, config: DrainConfig | None, now_ms: int) -> None:
        """Kill all tasks, with at most the grace that is given; None: it is over."""
        if self._hold(partial(self.drain, config)):
            return
        self._draining = config
        if config is None:
            return
        for framework_id, framework in list(self.frameworks.items()):
            for executor in list(framework.executors.values()):
                for task_id, task in list((executor.launched | executor.queued).items()):
                    if executor.states.get(task_id) not in TERMINAL_STATES:
                        self.kill_task(framework_id, task_id, _drain_policy(task, config), now_ms)

    def shut_down(self, text: str, now_ms: int) -> None:
        """The master wants this agent to end."""
        if not self._hold(partial(self.shut_down, text)):
            self._end(now_ms)

    # What executors say.

    def is_known(self, call: Message) -> bool:
        """Whether the call names an executor of this agent."""
        return self._find(call)[1] is not None

    def check(self, call: Message) -> Answer | None:
        """Return the refusal of a call that is not this agent's, or comes before SUBSCRIBE."""
        if self.life is Life.RECOVERING:
            return Answer(503, "Agent has not finished recovery")
        framework, executor = self._find(call)
        if framework is None:
            return Answer(400, "Framework cannot be found")
        if executor is None:
            return Answer(400, "Executor cannot be found")
        if call["type"] != "SUBSCRIBE" and executor.phase is Phase.REGISTERING:
            return Answer(403, "Executor is not subscribed")
        return None

    def subscribe(self, call: Message, stream: int, now_ms: int) -> None:
        """Take an executor's SUBSCRIBE that passed `check`; its stream is open."""
        self._now_ms = now_ms
        self._site.changed.add(self.spec.number)
        framework, executor = self._find(call)
        assert framework is not None and executor is not None
        if framework.terminating or executor.phase in (Phase.TERMINATING, Phase.TERMINATED):
            self._out.send(stream, {"type": "SHUTDOWN"})
            self._out.close(stream)
            return
        self._drop_stream(executor)
        executor.stream, executor.phase, executor.registration_ms = stream, Phase.RUNNING, None
        self._site.streams[stream] = self.spec.number
        executor.heartbeat_ms = now_ms + self._settings.executor_heartbeat_interval_ms
        self._arm(executor.heartbeat_ms)
        body = call["subscribe"]
        if not executor.queued and not executor.ever_sent:
            self._shut_down(executor, now_ms)  # all its tasks were killed before it came
            return
        self._out.send(stream, {"type": "SUBSCRIBED", "subscribed": self._subscribed(framework, executor)})
        for update in body.get("unacknowledged_updates", ()):
            self._take_update(executor, dict(update["status"]))
        self._drop_undelivered(executor, body.get("unacknowledged_tasks", ()))
        self._deliver_queued(executor)

    def call(self, call: Message, now_ms: int) -> Answer:
        """Take any other call that passed `check`."""
        self._now_ms = now_ms
        self._site.changed.add(self.spec.number)
        framework, executor = self._find(call)
        assert framework is not None and executor is not None
        if framework.terminating:
            return ACCEPTED
        if call["type"] == "MESSAGE":
            if self.is_registered and self._master is not None:
                name, data = executor.executor_id, call["message"]["data"]
                self._master.executor_message(self.spec.agent_id, executor.framework_id, name, data)
        elif call["type"] == "UPDATE" and self._take_update(executor, call["update"]["status"]) is Taken.FULL:
            return Answer(503, "Too many updates of this task wait for the scheduler's acknowledgement")
        return ACCEPTED

    def stream_closed(self, stream: int) -> None:
        """An executor's connection broke; nothing else follows from it."""
        for executor in self._containers.values():
            if executor.stream == stream:
                executor.stream = executor.heartbeat_ms = None

    # What the process runner says. It may come late, about a process that nobody here knows any more.

    def process_started(self, container_id: str, pid: int | None) -> None:
        executor = self._containers.get(container_id)
        if executor is not None:
            executor.pid = pid
            self._site.changed.add(self.spec.number)

    def process_failed(self, container_id: str, text: str, now_ms: int, status: int = NO_STATUS) -> None:
        """The process could not be started; `status` is that of what was to be done before."""
        if self._hold(partial(self.process_failed, container_id, text, status=status), is_process=True):
            return
        executor = self._containers.get(container_id)
        if executor is not None:
            text = f"Failed to launch container: {text}"
            executor.end = ("TASK_FAILED", "REASON_CONTAINER_LAUNCH_FAILED", text)
        self.process_exited(container_id, status, now_ms)

    def process_exited(self, container_id: str, status: int, now_ms: int) -> None:
        """The process is gone; `status` is the raw wait status."""
        if self._hold(partial(self.process_exited, container_id, status), is_process=True):
            return
        self._now_ms = now_ms
        executor = self._containers.get(container_id)
        if executor is not None and self._must_poll(executor):
            executor.status, executor.reap_ms = status, now_ms + self._settings.reap_interval_ms
            self._arm(executor.reap_ms)
            return
        self._site.containers.pop(container_id, None)
        if executor is None:
            return
        del self._containers[container_id]
        framework = self.frameworks[executor.framework_id]
        self._drop_stream(executor)
        executor.registration_ms = executor.kill_ms = executor.heartbeat_ms = None
        executor.phase = Phase.TERMINATED
        if not framework.terminating:
            self._tell_exited(executor, status, now_ms)
            alive = [name for name in executor.launched if executor.states[name] not in TERMINAL_STATES]
            executor.launched |= executor.queued
            for task_id in (*alive, *executor.queued):
                self._report(executor, task_id, *executor.end)
            executor.queued.clear()
        self._forget_ended(executor.framework_id)
        if self.life is Life.ENDING and not self._containers:
            self.die(now_ms)

    # Time.

    def tick(self, now_ms: int) -> None:
        """Do what is due: its own start, updates again, executors that did not register, graces that are over, heartbeats."""
        if self.life in (Life.FROZEN, Life.DOWN):
            return
        self._now_ms = now_ms
        self._site.changed.add(self.spec.number)
        if self._recovered_ms is not None and self._recovered_ms <= now_ms:
            self._finish_recovery(now_ms)
        if self._reregistration_ms is not None and self._reregistration_ms <= now_ms:
            self._give_up_recovered()
        if self._registration_ms is not None and self._registration_ms <= now_ms:
            self._register(now_ms)
        self._updates.tick(now_ms)
        self._estate.tick(now_ms)
        for executor in list(self._containers.values()):
            if executor.registration_ms is not None and executor.registration_ms <= now_ms:
                timeout = format_duration(self._settings.executor_registration_timeout_ms)
                text = f"Executor did not register within {timeout}"
                executor.end = ("TASK_FAILED", "REASON_EXECUTOR_REGISTRATION_TIMEOUT", text)
                self._kill(executor)
            elif executor.kill_ms is not None and executor.kill_ms <= now_ms:
                self._kill(executor)
            elif executor.reap_ms is not None and executor.reap_ms <= now_ms:
                self.process_exited(executor.container_id, executor.status, now_ms)
            elif executor.heartbeat_ms is not None and executor.heartbeat_ms <= now_ms:
                executor.heartbeat_ms = now_ms + self._settings.executor_heartbeat_interval_ms
                self._arm(executor.heartbeat_ms)
                self._out.send(executor.stream, {"type": "HEARTBEAT"})

    # Start and end.

    def _finish_recovery(self, now_ms: int) -> None:
        """Serve executors again; with any of them left, wait for them before registering."""
        self._recovered_ms, self.life = None, Life.UP
        self._replay(now_ms)
        wait_ms = self._settings.executor_reregistration_timeout_ms if self._containers else 0
        self._reregistration_ms = now_ms + wait_ms
        self._arm(self._reregistration_ms)
        self._register_at(now_ms + wait_ms + self._settings.registration_backoff_ms)

    def _give_up_recovered(self) -> None:
        """Kill the executors that did not subscribe again in time."""
        self._reregistration_ms = None
        timeout = format_duration(self._settings.executor_reregistration_timeout_ms)
        for executor in list(self._containers.values()):
            is_dead = executor.reap_ms is not None
            if executor.is_recovered and executor.phase is Phase.REGISTERING and not is_dead:
                state = self.frameworks[executor.framework_id].lost("TASK_GONE")
                text = f"Executor did not reregister within {timeout}"
                executor.end = (state, "REASON_EXECUTOR_REREGISTRATION_TIMEOUT", text)
                self._kill(executor)

    def _register_at(self, at_ms: int) -> None:
        self._registration_ms = at_ms
        self._arm(at_ms)

    def _register(self, now_ms: int) -> None:
        self._registration_ms = None
        if self._master is not None:
            heads = self._updates.heads()
            found = recovery.report(self.spec, self.frameworks, heads, self._estate)
            self._master.register_agent(found, self, now_ms)

    def _end(self, now_ms: int) -> None:
        """Shut down all executors and end when they have; nothing of them is reported."""
        self.life, self.is_registered = Life.ENDING, False
        self._recovered_ms = self._reregistration_ms = self._registration_ms = None
        self._updates.pause()
        for framework_id in list(self.frameworks):
            self.shutdown_framework(framework_id, now_ms)
        self._replay(now_ms)  # processes that have ended meanwhile
        if self.life is Life.ENDING and not self._containers:
            self.die(now_ms)

    def _must_poll(self, executor: Executor) -> bool:
        """Whether the end of an executor is still to be noticed: it is nobody's child here."""
        return executor.is_recovered and executor.reap_ms is None and self.life is Life.UP

    def _hold(self, action: Callable[[int], None], *, is_process: bool = False) -> bool:
        """Whether `action` has to wait for this agent, or, said to a dead one, is lost."""
        self._site.changed.add(self.spec.number)
        waits = self.life is Life.FROZEN or is_process and self.life in (Life.RECOVERING, Life.DOWN)
        if waits:
            self._held.append((is_process, action))
        return waits or self.life is Life.DOWN

    def _replay(self, now_ms: int) -> None:
        held, self._held = self._held, []
        for _, action in held:
            action(now_ms)


def _drain_policy(task: Message, config: DrainConfig) -> Message | None:
    """Return the kill policy of a task on a draining agent: its own grace, but not more than the drain's."""
    own = task.get("kill_policy")
    if config.grace_ms_max is None:
        return own
    longest = config.grace_ms_max * 1_000_000
    wanted = (own or {}).get("grace_period", {}).get("nanoseconds", longest)
    return {"grace_period": {"nanoseconds": min(wanted, longest)}}
