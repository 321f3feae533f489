"""What may go wrong, on order: agents and masters that die, freeze and come back, words that get lost, slow servers.

Each order is an event that happens to real clusters; nothing here reaches into a machine, it all comes from outside, as there:
processes end, connections break, messages are dropped.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stoker.mesos.embedded.config import ConfigError, parse_attributes
from stoker.mesos.embedded.core.calls import Answer, Refused
from stoker.mesos.embedded.core.cluster import Refusal, Stop
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.containers import Life
from stoker.mesos.embedded.core.messages import SCHEMA
from stoker.mesos.embedded.core.recovery import AgentCheckpoint
from stoker.mesos.embedded.core.reservations import ResourceError
from stoker.mesos.embedded.masters import MasterSeat, Role

if TYPE_CHECKING:
    from stoker.mesos.embedded.server import EmbeddedMesos

logger = logging.getLogger(__name__)

DROPS_MAX = 1_000_000

FETCH_DELAY_S_MAX = 3_600.0

_ATTRIBUTES = "attributes="

# What may get lost: a scheduler's calls but for its first, what masters tell schedulers, what agents tell executors.
_CALLS = SCHEMA.enums["SchedulerCallType"] - {"SUBSCRIBE"}
_EVENTS = frozenset(
    "SUBSCRIBED OFFERS INVERSE_OFFERS RESCIND RESCIND_INVERSE_OFFER UPDATE UPDATE_OPERATION_STATUS MESSAGE FAILURE ERROR "
    "HEARTBEAT ACKNOWLEDGED LAUNCH LAUNCH_GROUP KILL SHUTDOWN".split()
)
_ARGUMENTS = {  # docs/mesos.rst says what they mean
    "agent-stop": "N [kill|freeze|usr1|never-started]",
    "agent-start": "N [reset|rebooted|additive|equal|attributes=NAME:VALUE;...|NAME:AMOUNT;...]...",
    "master-kill": "[N]",
    "master-start": "[N [PORT]]",
    "master-freeze": "[N]",
    "master-thaw": "[N]",
    "close-stream": "[FRAMEWORK]",
    "drop-next": "TYPE [COUNT]",
    "slow-fetch": "SECONDS",
    "rotate-secret": "PRINCIPAL SECRET",
}


class Faults:
    """The orders by name; `drops` and `swallows` are asked for each event and call."""

    def __init__(self, mesos: EmbeddedMesos) -> None:
        self._mesos = mesos
        self._has_heartbeats = True
        self._drops: Counter[str] = Counter()
        self._orders: dict[str, Callable[..., None]] = {
            "agent-stop": self._agent_stop,
            "agent-start": self._agent_start,
            "master-kill": self._master_kill,
            "master-start": self._master_start,
            "master-freeze": self._master_freeze,
            "master-thaw": self._master_thaw,
            "heartbeats-stop": self._heartbeats_stop,
            "heartbeats-start": self._heartbeats_start,
            "close-stream": self._close_stream,
            "drop-next": self._drop_next,
            "slow-fetch": self._slow_fetch,
            "rotate-secret": self._rotate_secret,
        }

    def order(self, body: bytes) -> Answer:
        """Do what {"fault": NAME, "arguments": [TEXT, ...]} says, now.

        :raises Refused: 400 or 409; the text says what is allowed.
        """
        try:
            order: Any = json.loads(body)
        except ValueError as error:
            raise Refused(400, f"A fault order is a JSON object: {error}") from error
        if not isinstance(order, dict) or not isinstance(order.get("arguments", []), list):
            raise Refused(400, 'A fault order is {"fault": NAME, "arguments": [...]}')
        name = order.get("fault")
        do = self._orders.get(name) if isinstance(name, str) else None
        if do is None or not isinstance(name, str):
            raise Refused(400, f"There is no fault {name!r}: there are {', '.join(self._orders)}")
        arguments = [str(argument) for argument in order.get("arguments", [])]
        logger.info("fault %s %s", name, " ".join(arguments))
        try:
            inspect.signature(do).bind(*arguments)
        except TypeError as error:
            form = " ".join(filter(None, (name, _ARGUMENTS.get(name))))
            raise Refused(400, f"{' '.join((name, *arguments))}: write {form}") from error
        try:
            do(*arguments)
        except (ValueError, ResourceError, ConfigError) as error:
            raise Refused(400, f"{name} {' '.join(arguments)}: {error}") from error
        except (Refusal, OSError) as error:
            raise Refused(409, f"{name} {' '.join(arguments)}: {error}") from error
        return Answer(200)

    def drops(self, event: Message) -> bool:
        """Whether this event gets lost on its way."""
        kind = event["type"]
        return kind == "HEARTBEAT" and not self._has_heartbeats or self._is_due(kind)

    def swallows(self, call: Message) -> bool:
        """Whether this call is answered and has no effect."""
        return self._is_due(call["type"])

    def _is_due(self, kind: str) -> bool:
        if not self._drops[kind]:
            return False
        self._drops[kind] -= 1
        logger.info("fault drops %s", kind)
        return True

    # Agents.

    def _agent_stop(self, text: str, how: str = "kill") -> None:
        """how: kill, freeze, usr1, or never-started, which is usr1 before anybody has seen it."""
        number = self._number(text, len(self._mesos.agents))
        ways: dict[str, Stop] = {"kill": "kill", "freeze": "freeze", "usr1": "usr1", "never-started": "usr1"}
        way = ways.get(how)
        if way is None:
            raise ValueError(f"an agent is stopped by {', '.join(ways)}")
        if way == "freeze":
            self._mesos.agents[number - 1].freeze()
        self._try(lambda now_ms: self._mesos.cluster.stop_agent(number, way, now_ms))

    def _agent_start(self, text: str, *more: str) -> None:
        """more: reset (its work_dir is gone), rebooted, additive, equal, attributes=NAME:VALUE;..., cpus:8;mem:2048 ..."""
        mesos = self._mesos
        number = self._number(text, len(mesos.agents))
        seat = mesos.agents[number - 1]
        resources = seat.resources
        words = set(more) & {"reset", "rebooted", "additive", "equal"}
        attributes: tuple[Message, ...] | None = None
        for word in [word for word in more if word not in words]:
            if word.startswith(_ATTRIBUTES):
                attributes = parse_attributes(word.removeprefix(_ATTRIBUTES))
            else:
                resources = seat.changed_resources(word)
        life = mesos.cluster.agent(number).life
        if more and life is not Life.DOWN:  # before anything is emptied
            raise Refusal(f"agent {number} is {life.value}: only one that has ended starts as another")
        if "reset" in words:
            seat.wipe()
        kept = seat.read_checkpoint()
        self._try(
            lambda now_ms: mesos.cluster.start_agent(
                number,
                now_ms,
                kept=None if kept is None else AgentCheckpoint.from_message(kept),
                is_wiped="reset" in words,
                is_rebooted="rebooted" in words,
                resources=resources,
                attributes=attributes,
                policy=next((word for word in ("additive", "equal") if word in words), None),
            )
        )
        seat.resources = resources
        seat.thaw()
        if not seat.is_up:
            seat.open(mesos.agent_handler(number))

    def _try(self, change: Callable[[int], None]) -> None:
        """Make a step that may be refused, which is no error of the machine."""
        refusals: list[Refusal] = []

        def attempt(now_ms: int) -> None:
            try:
                change(now_ms)
            except Refusal as refusal:
                refusals.append(refusal)

        self._mesos.step(attempt)
        if refusals:
            raise refusals[0]

    # Masters.

    def _master_kill(self, text: str = "") -> None:
        self._mesos.stop_master(self._living(text), how="kill")

    def _master_start(self, text: str = "", port: str = "") -> None:
        """Start a master again: at the same address, or at another port."""
        seats = self._mesos.masters
        if text:
            seat = seats[self._number(text, len(seats)) - 1]
        else:
            seat = next((one for one in seats if one.role is Role.DEAD), seats[0])
        if seat.role is not Role.DEAD:
            raise Refusal(f"master {seat.number} runs: it is {seat.role.value}")
        if port:
            seat.move(self._number(port, 65535))
        self._mesos.start_master(seat)

    def _master_freeze(self, text: str = "") -> None:
        self._living(text).freeze()

    def _master_thaw(self, text: str = "") -> None:
        self._living(text).thaw()

    def _living(self, text: str) -> MasterSeat:
        """Return the master of a number; without one the leader, or else the first that lives."""
        seats = self._mesos.masters
        if text:
            seat = seats[self._number(text, len(seats)) - 1]
        else:
            living = [one for one in seats if one.role is not Role.DEAD]
            seat = self._mesos.leader or next(iter(living), seats[0])
        if seat.role is Role.DEAD:
            raise Refusal(f"master {seat.number} does not run")
        return seat

    # Words on their way.

    def _heartbeats_stop(self) -> None:
        self._has_heartbeats = False

    def _heartbeats_start(self) -> None:
        self._has_heartbeats = True

    def _close_stream(self, framework_id: str = "") -> None:
        """Break the stream of one framework, or of all."""
        master = self._mesos.cluster.master
        for framework in list(master.frameworks.values()):
            if framework.stream is not None and framework_id in ("", framework.framework_id):
                self._mesos.break_stream(framework.stream)

    def _drop_next(self, kind: str, count: str = "1") -> None:
        """Let the next events or calls of a type get lost: UPDATE, FAILURE, REVIVE, KILL ..."""
        if kind not in _CALLS | _EVENTS:
            raise ValueError(
                f"no event or call is a {kind!r}: there are {', '.join(sorted(_CALLS | _EVENTS))}"
            )
        self._drops[kind] += self._number(count, DROPS_MAX)

    def _slow_fetch(self, seconds: str) -> None:
        delay_s = float(seconds)
        if not 0 <= delay_s <= FETCH_DELAY_S_MAX:
            raise ValueError(f"{seconds} is no delay from 0 to {FETCH_DELAY_S_MAX:g} seconds")
        self._mesos.runner.fetch_delay_s = delay_s

    def _rotate_secret(self, principal: str, secret: str) -> None:
        """Give a principal another secret."""
        if principal not in self._mesos.authenticator.secrets:
            raise ValueError(f"there is no principal {principal!r}")
        self._mesos.authenticator.secrets[principal] = secret

    @staticmethod
    def _number(text: str, highest: int) -> int:
        if not text.isdigit() or not 1 <= int(text) <= highest:
            raise ValueError(f"{text!r} is no number from 1 to {highest}")
        return int(text)
