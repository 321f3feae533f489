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
    # How much faster than recorded the embedded Mesos is run; a real one keeps true times.
    scale: float = 5.0
    # Flags of the Mesos; numbers are true seconds, several texts are as many flags.
    options: Mapping[str, float | str | tuple[str, ...] | None] = field(default_factory=dict)
    # How many agents there are; 0: those that made offers in the transcript. `stopped`: those that do not run at first.
    agents: int = 0
    stopped: tuple[int, ...] = ()
    # Hooks, or orders to executors, before a line.
    before: Mapping[int, tuple[Step, ...]] = field(default_factory=dict)
    # Hooks that a test has for the embedded Mesos: what happens around it, not in it; "begin" before it is started.
    own_hooks: Mapping[str, Callable[[], None]] = field(default_factory=dict)
    # Calls: what follows where the transcript shortens the body; headers that were not recorded; all offers there are instead
    # of those named, as chance has cut them up; an operator's that go to an agent, and others that go to a master, by number.
    endings: Mapping[int, str] = field(default_factory=dict)
    more_headers: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    all_offers: frozenset[int] = frozenset()
    agent_calls: Mapping[int, int] = field(default_factory=dict)
    masters: Mapping[int, int] = field(default_factory=dict)
    # Calls that are made again as long as they get this status: 307, from now on, while a master sends to the former leader.
    asked_again: Mapping[int, int] = field(default_factory=dict)
    # Lines that are not played; that must come but are not compared, as chance made them; whose texts are compared up to the
    # first line's end; that may overtake others; OFFERS whose agents chance has chosen; events of a program's former stream.
    skip: frozenset[int] = frozenset()
    unchecked: frozenset[int] = frozenset()
    first_line: frozenset[int] = frozenset()
    any_order: frozenset[int] = frozenset()
    any_agent: frozenset[int] = frozenset()
    former: frozenset[int] = frozenset()
    # Rules about what a clock of its own brings (pings that go unanswered): a late action makes it come sooner after it.
    by_own_clock: frozenset[int] = frozenset()
    # Connections that are dropped by RST.
    resets: frozenset[int] = frozenset()
    # Fields whose value or presence is not compared.
    free: tuple[str, ...] = ()
    # Names of rows; "" makes a note no row.
    titles: Mapping[int, str] = field(default_factory=dict)
    # What the executor writes into which file.
    written: Mapping[str, str] = field(default_factory=dict)
    recorded_executor: str = "exec /usr/bin/python3 /opt/test/exec_rec.py"
    heartbeat_s: float = 15.0
    # How long beyond the recorded time what must come on a busy machine is waited for.
    patience_s: float = 20.0

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
