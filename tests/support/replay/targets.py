"""The Mesos that a scenario is played against: the embedded one, started for it, or any other at an address.

A hook is an operator's step that no call of the API does: an agent is killed, a master is started again. The embedded Mesos has
them built in, at its fault endpoint; for another one they are programs in a directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.embedded import EmbeddedProcess, Scheduler, request
from support.ports import fixed_port
from support.replay.recording import AgentNeeds, Entry, Recording
from support.replay.script import Script
from support.replay.timing import held_up_s

HOOK_TIMEOUT_S = 120
PROBE_TIMEOUT_S = 5.0
POLL_S = 0.05

# Flags whose default is a time, in true seconds: those of the recordings. A script's options come over them.
DEFAULT_TIMES = {
    "allocation-interval": 1.0,
    "heartbeat-interval": 15.0,
    "update-retry": 10.0,
    "update-retry-max": 600.0,
    "executor-registration-timeout": 60.0,
    "executor-shutdown-grace-period": 5.0,
    "recovery-timeout": 900.0,
    "default-refuse": 5.0,
    "agent-ping-timeout": 1.0,
    "registration-backoff": 0.01,
    "executor-reregistration-timeout": 2.0,
}


# Flags that a Mesos of several masters has, as it must.
_OF_SEVERAL_MASTERS = ("zk", "zk-session-timeout", "masters")
# Where a recording does not say what its agents have.
NO_OFFERS = AgentNeeds(1, 1024, 1024, (31000, 31099), "")


class MissingHook(Exception):
    """This Mesos cannot be made to do that; the text says what would be needed."""


class HookFailed(Exception):
    """An operator's step was tried, and could not be done."""


class Target:
    """What the player needs of a Mesos."""

    is_embedded = False
    free: frozenset[str] = frozenset()  # fields that are its own affair, besides those that always are
    MissingHook, HookFailed = MissingHook, HookFailed

    def __init__(self, *masters: str) -> None:
        """`masters` are addresses; the first of them leads at first."""
        self._masters = masters
        self.address = masters[0]

    def address_of(self, entry: Entry, script: Script) -> str:
        """Return where a call goes: to the master, but for an operator's calls to an agent."""
        master = script.masters.get(entry.index)
        if master is not None:
            return self._master_address(master)
        number = script.agent_calls.get(entry.index)
        return self.address if number is None else self._agent_address(number)

    def agents(self) -> list[dict[str, Any]]:
        """Return the agents as the master tells them, in the order of their ports."""
        reply = request(self.address, "GET", "/state", b"", {})
        agents = json.loads(reply.text)["slaves"] if reply.status == 200 else []
        return sorted(
            (agent for agent in agents if agent["active"]),
            key=lambda item: str(item["resources"].get("ports")),
        )

    def await_leader(self, number: int, agents: int, seconds: float) -> None:
        """Wait until a master leads and so many agents are there, however long the former leader's session lasts.

        :raises HookFailed: it does not within `seconds`.
        """
        address, deadline = self._master_address(number), time.monotonic() + seconds
        while time.monotonic() < deadline:
            reply = request(address, "GET", "/state", b"", {})
            if reply.status == 200 and json.loads(reply.text)["activated_slaves"] >= agents:
                return
            time.sleep(POLL_S)
        raise HookFailed(f"master {number} does not lead {agents} agents after {seconds:.0f} s")

    def _master_address(self, number: int) -> str:
        raise NotImplementedError

    def _agent_address(self, number: int) -> str:
        return str(self.agents()[number - 1]["pid"].partition("@")[2])

    def beyond(self, needed: list[AgentNeeds]) -> tuple[set[str], dict[str, set[float]]]:
        """Return the ids of agents that no recording has, and by how much the others have more of each resource.

        :raises MissingHook: there are too few agents.
        """
        return set(), {}

    def prepare(self, script: Script, recording: Recording) -> None:
        """Make it ready for a scenario.

        :raises MissingHook: it has not what the scenario needs. :raises HookFailed: it went wrong.
        """

    def restore(self) -> None:
        """Start again what the scenario has stopped."""

    def tear_down(self, framework_id: str) -> None:
        """Remove a framework, if it is still there."""
        body = json.dumps({"type": "TEARDOWN", "teardown": {"framework_id": {"value": framework_id}}})
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        for address in self._masters:  # whichever leads now
            with contextlib.suppress(OSError):
                request(address, "POST", "/api/v1", body, headers)

    def tick_at(self) -> float | None:
        """Return when (time.monotonic) the allocator ticks, if that can be found out."""
        return None

    def hook(self, name: str, *arguments: str) -> None:
        """Do an operator's step.

        :raises MissingHook: there is none here. :raises HookFailed: it went wrong.
        """
        raise NotImplementedError


class EmbeddedTarget(Target):
    """A process `stoker mesos` of this scenario's own; a context manager."""

    is_embedded = True

    def __init__(self, script: Script, recording: Recording, work_dir: Path) -> None:
        self._own_hooks = script.own_hooks
        if "begin" in self._own_hooks:
            self._own_hooks["begin"]()
        self._process = EmbeddedProcess(work_dir, *_options(script, recording))
        self._started_at = time.monotonic()
        super().__init__(self._process.address)

    def __enter__(self) -> EmbeddedTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    def held_up_s(self) -> float:
        """Return how long it and its player, both ready to run, have had no processor."""
        return held_up_s(self._process.process.pid, os.getpid())

    def _master_address(self, number: int) -> str:
        return self._process.master_address(number)

    def tick_at(self) -> float | None:
        return self._started_at

    def tear_down(self, framework_id: str) -> None:
        pass  # it ends with its scenario

    def hook(self, name: str, *arguments: str) -> None:
        if name in self._own_hooks:
            self._own_hooks[name]()
            return
        reply = self._process.fault(name, *arguments)
        if reply.status != 200:
            raise HookFailed(f"hook {' '.join((name, *arguments))}: {reply.status} {reply.text}")


class OtherTarget(Target):
    """A Mesos that somebody else has started, and that others may use as well."""

    # What all agents have and offer together is told of agents that no recording has, too.
    free = frozenset(
        {
            *(
                "version",
                "offered_resources",
                "frameworks.resources",
                "activated_slaves",
                "deactivated_slaves",
            ),
            *("unreachable_slaves", "recovered_slaves"),
        }
    )

    def __init__(self, addresses: str, hooks: Path | None) -> None:
        """`addresses` are those of all masters, with commas between them."""
        super().__init__(*addresses.split(","))
        self._hooks = hooks
        self._stopped: dict[tuple[str, ...], None] = {}

    def prepare(self, script: Script, recording: Recording) -> None:
        """Hand over what the scenario needs; without a hook for it only what needs no flags of its own can be played."""
        count = int(str(script.options.get("masters", 1)))
        if count > len(self._masters):
            addresses = ",".join([*self._masters, *["HOST:PORT"] * (count - len(self._masters))])
            raise MissingHook(f"it needs the addresses of {count} masters: --mesos-master {addresses}")
        its_own = {"allocation-interval", *(_OF_SEVERAL_MASTERS if count > 1 else ())}
        flags = {
            name: value
            for name, value in script.options.items()
            if name not in its_own and DEFAULT_TIMES.get(name, "") != value
        }
        if self._program("prepare") is not None:
            agents = [agent._asdict() for agent in recording.agents()]
            wanted = {"scenario": recording.name, "agents": agents, "options": flags}
            self._run("prepare", input=json.dumps(wanted))
        elif flags:
            text = ", ".join(f"{name} {value}" for name, value in flags.items())
            raise MissingHook(f"it needs {text}: put an executable prepare into --mesos-hooks DIR")

    def _master_address(self, number: int) -> str:
        return self._masters[number - 1]

    def restore(self) -> None:
        for name, *arguments in list(self._stopped):
            with contextlib.suppress(MissingHook, HookFailed):
                self.hook(f"{name}-start", *arguments)

    def tick_at(self) -> float | None:
        """Let a framework decline what it is offered, for no time: the next offers come with the tick."""
        try:
            scheduler = Scheduler(self.address, info={"failover_timeout": 0.0})
        except AssertionError:  # it wants credentials, or does not lead
            return None
        try:
            offers = scheduler.wait_offers(seconds=PROBE_TIMEOUT_S)
            seen = len(scheduler.events)
            ids = [offer["id"] for offer in offers]
            scheduler.call("DECLINE", {"offer_ids": ids, "filters": {"refuse_seconds": 0.0}})
            scheduler.wait_offers(start=seen, seconds=PROBE_TIMEOUT_S)
            return time.monotonic()
        except AssertionError:  # there are no agents
            return None
        finally:
            scheduler.call("TEARDOWN")
            scheduler.wait_end()

    def beyond(self, needed: list[AgentNeeds]) -> tuple[set[str], dict[str, set[float]]]:
        agents = self.agents()
        if len(agents) < len(needed):
            raise MissingHook(f"{len(needed)} agents are needed, {self.address} has {len(agents)}")
        more: dict[str, set[float]] = {}
        for agent, wanted in zip(agents, needed, strict=False):
            for name, amount in (("cpus", wanted.cpus), ("mem", wanted.mem_mib), ("disk", wanted.disk_mib)):
                more.setdefault(name, set()).add(agent["resources"].get(name, 0.0) - amount)
        return {agent["id"] for agent in agents[len(needed) :]}, more

    def hook(self, name: str, *arguments: str) -> None:
        if self._program(name) is None:
            raise MissingHook(f"there is no hook {name}: put an executable {name} into --mesos-hooks DIR")
        self._run(name, *arguments)
        who, _, what = name.partition("-")
        key = (who, *arguments[:1])
        if what in ("start", "thaw"):
            self._stopped.pop(key, None)
        else:
            self._stopped[key] = None

    def _program(self, name: str) -> Path | None:
        program = None if self._hooks is None else self._hooks / name
        return program if program is not None and os.access(program, os.X_OK) else None

    def _run(self, name: str, *arguments: str, input: str = "") -> None:
        environment = os.environ | {"MESOS_MASTER": self.address}
        command = [str(self._program(name)), *arguments]
        try:
            done = subprocess.run(
                command, env=environment, timeout=HOOK_TIMEOUT_S, capture_output=True, text=True, input=input
            )
        except subprocess.TimeoutExpired as error:
            text = f"did not end within {HOOK_TIMEOUT_S} s"
            raise HookFailed(f"hook {' '.join((name, *arguments))} {text}") from error
        if done.returncode:
            text = (done.stderr or done.stdout).strip()[-500:]
            raise HookFailed(f"hook {' '.join((name, *arguments))} ended with {done.returncode}: {text}")


def _options(script: Script, recording: Recording) -> list[str]:
    """Return the command line that makes the embedded Mesos like the recorded one, times divided by the scale."""
    agents = recording.agents() or [NO_OFFERS]
    first = agents[0]
    count = script.agents or len(agents)
    result = [
        "--faults",
        "--port",
        str(fixed_port()),
        "--agents",
        str(count),
        "--hostnames",
        ",".join(["127.0.0.1"] * count),
    ]
    result += [
        "--cpus",
        f"{first.cpus:g}",
        "--mem",
        f"{first.mem_mib:.0f}MiB",
        "--disk",
        f"{first.disk_mib:.0f}MiB",
    ]
    result += ["--ports", f"{first.ports[0]}-{first.ports[1]}"]
    if any(agent.attributes for agent in agents) and len(agents) == count:
        for agent in agents:
            result += ["--attributes", agent.attributes]
    for name, value in (DEFAULT_TIMES | dict(script.options)).items():
        if value is None:
            result.append(f"--{name}")
        for one in () if value is None else value if isinstance(value, tuple) else (value,):
            result += [f"--{name}", f"{one / script.scale:.6g}" if isinstance(one, float) else str(one)]
    return result


def python_of_agents(other: str | None) -> str:
    """Return the Python that an agent has: ours for the embedded one."""
    return other or sys.executable
