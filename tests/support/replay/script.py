"""How a scenario is played: what its transcript cannot say of itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from support.replay.recording import Entry

Step = tuple[str, ...]

# What the recorder's notes say that it did, and the hook that does it again.
NOTED: tuple[tuple[str, Step], ...] = (
    (r"agent(\d) gets SIGKILL", ("agent-stop", r"\1", "kill")),
    (r"agent(\d) gets SIGSTOP", ("agent-stop", r"\1", "freeze")),
    (r"agent(\d) gets SIGUSR1", ("agent-stop", r"\1", "usr1")),
    (r"agent(\d) gets SIGCONT", ("agent-start", r"\1")),
    (r"agent(\d) (?:process )?(?:is )?started", ("agent-start", r"\1")),
    (r"master gets SIGKILL", ("master-kill",)),
    (r"master gets SIGSTOP", ("master-freeze",)),
    (r"master process started", ("master-start",)),
)


@dataclass(frozen=True)
class Script:
    """A scenario: the transcript, and whatever must be known besides to play it. Lines are indexes from 0 (as in `Entry.index`)."""

    transcript: str
    scale: float = 5.0  # how much faster than recorded the embedded Mesos is run; a real one keeps true times
    options: Mapping[str, float | str | tuple[str, ...] | None] = field(
        default_factory=dict
    )  # flags of the Mesos; numbers are true seconds, several texts are as many flags
    agents: int = 0  # how many agents there are; 0: those that made offers in the transcript
    stopped: tuple[int, ...] = ()  # agents that are not running at the beginning
    before: Mapping[int, tuple[Step, ...]] = field(
        default_factory=dict
    )  # hooks, or orders to executors, before a line
    endings: Mapping[int, str] = field(
        default_factory=dict
    )  # what follows where the transcript shortens a call's body
    first_line: frozenset[int] = frozenset()  # events whose texts are compared up to their first line's end
    skip: frozenset[int] = frozenset()  # lines that are not played
    unchecked: frozenset[int] = frozenset()  # lines that must come, but are not compared: chance made them
    any_order: frozenset[int] = frozenset()  # events that may overtake others
    all_offers: frozenset[int] = (
        frozenset()
    )  # calls that name all offers there are, however many: chance has cut them up
    any_agent: frozenset[int] = frozenset()  # OFFERS whose agents chance has chosen: theirs may be other ones
    former: frozenset[int] = frozenset()  # events of a program's stream before its present one
    resets: frozenset[int] = frozenset()  # connections that are dropped by RST
    free: tuple[str, ...] = ()  # fields whose value or presence is not compared
    titles: Mapping[int, str] = field(default_factory=dict)  # names of rows; "" makes a note no row
    written: Mapping[str, str] = field(default_factory=dict)  # what the executor writes into which file
    agent_calls: Mapping[int, int] = field(
        default_factory=dict
    )  # operator calls that go to an agent's own address
    more_headers: Mapping[int, Mapping[str, str]] = field(
        default_factory=dict
    )  # of calls, that were not recorded
    masters: Mapping[int, int] = field(
        default_factory=dict
    )  # calls that go to a master by its number, from 1
    recorded_executor: str = "exec /usr/bin/python3 /opt/test/exec_rec.py"
    heartbeat_s: float = 15.0
    patience_s: float = 20.0  # beyond the recorded time, for what must come on a busy machine

    def scale_on(self, target: Any) -> float:
        return self.scale if target.is_embedded else 1.0

    def steps_of(self, entry: Entry) -> list[Step]:
        """Return the hooks that a note of the recorder asks for."""
        steps = []
        for pattern, step in NOTED:
            if match := re.match(pattern, entry.text):
                steps.append(tuple(match.expand(part) if "\\" in part else part for part in step))
        return steps


Play: TypeAlias = Callable[[Script], None]
