"""Users of the simulated cluster: they ask over HTTP, go where they are sent, and ask again when nobody knows.

What may be asked again without harm (it has a name or a key of its own) is, until it is answered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sim.executor import BLOCK_BYTES, block_path
from sim.faults import Faults
from sim.leading import MIB, Leading, Respond
from sim.timeline import Timeline
from sim.truth import Truth
from stoker.framework.core import actions as a
from stoker.framework.core import events as ev
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.rules import is_wanted, merge_rules
from stoker.framework.model import STALE_SELECTION, FleetSpec, Selection

TRIES_MAX = 40
TIMEOUT_MS = 5_000

Send = Callable[[str, Callable[[Leading], None], Respond], None]  # (url, serve, respond)
MakeEvent = Callable[[Leading, int], ev.Event]


@dataclass
class Asking:
    text: str
    make_event: MakeEvent
    repeatable: bool
    url: str
    tries: int = 0
    round: int = 0  # an answer to an earlier one is late


class Users:
    def __init__(
        self, timeline: Timeline, faults: Callable[[], Faults], urls: tuple[str, ...], send: Send, truth: Truth,
        spec: FleetSpec,
    ) -> None:  # fmt: skip
        self.timeline = timeline
        self.answers: list[tuple[str, a.Answer]] = []
        self.given_up: list[str] = []
        self.reads = 0
        self._faults, self._urls, self._send, self._truth, self._spec = faults, urls, send, truth, spec
        self._keys = itertools.count(1)
        self._jobs: list[str] = []  # ids that were answered

    def second(self) -> None:
        chance = self._faults().users
        while chance > 0:
            if self.timeline.chance(chance):
                self._ask_something()
            if self.timeline.chance(chance):
                self.read()
            chance -= 1

    def _ask_something(self) -> None:
        name = self.timeline.random.choice(("alpha", "beta"))
        kind = self.timeline.random.choices(
            ("add", "remove", "load", "free", "cancel", "fleet", "change", "refresh"),
            (20, 4, 30, 12, 10, 4, 6, 8),
        )[0]
        getattr(self, f"ask_{kind}")(name)

    # --- asking

    def ask(self, text: str, make_event: MakeEvent, *, repeatable: bool = False) -> None:
        url = self.timeline.random.choice(self._urls)
        self._try(Asking(text, make_event, repeatable, url))

    def _try(self, asking: Asking) -> None:
        asking.tries += 1
        asking.round += 1
        this = asking.round

        def respond(how: str, value: Any) -> None:
            if asking.round == this:
                asking.round += 1
                self._answered(asking, how, value)

        self._send(
            asking.url,
            lambda leading: leading.ask(lambda r: asking.make_event(leading, r), respond),
            respond,
        )
        self.timeline.at(TIMEOUT_MS, lambda: respond("timeout", None))

    def _answered(self, asking: Asking, how: str, value: Any) -> None:
        if how == "answer":
            if value.refusal is not None and value.refusal.code == STALE_SELECTION:
                self._again(asking)
                return
            self.answers.append((asking.text, value))
            if isinstance(value.body, dict) and str(value.body.get("id", "")).startswith("j"):
                self._jobs.append(value.body["id"])
        elif how in ("outcome_unknown", "timeout") and not asking.repeatable:
            self.given_up.append(asking.text)
        else:
            asking.url = value if how == "redirect" else self.timeline.random.choice(self._urls)
            self._again(asking, at_once=how == "redirect")

    def _again(self, asking: Asking, *, at_once: bool = False) -> None:
        if asking.tries >= TRIES_MAX:
            self.given_up.append(asking.text)
            return
        delay_ms = 1 if at_once else self.timeline.between(200, 1_500)
        self.timeline.at(delay_ms, lambda: self._try(asking))

    def read(self) -> None:
        """Read, once: what was acknowledged to anybody before must be seen."""
        seen = self._truth.acknowledged_index

        def respond(how: str, value: Any) -> None:
            if how == "answer":
                assert value >= seen, f"a read saw {value} records after {seen} were acknowledged"
                self.reads += 1

        url = self.timeline.random.choice(self._urls)

        def first(how: str, value: Any) -> None:
            if how == "redirect":
                self._send(value, lambda leading: leading.read(respond), respond)
            else:
                respond(how, value)

        self._send(url, lambda leading: leading.read(first), first)

    # --- what they ask

    def ask_add(self, name: str) -> None:
        source = f"mem://{self.timeline.random.choice((3, 20, 40))}"
        replicas = self.timeline.random.choice((1, 2))
        self.ask(
            f"add {name} {source}",
            lambda _, r: ev.DatasetRequested(r, name, source, {}, replicas, "keep", "mem", 0),
            repeatable=True,
        )

    def ask_remove(self, name: str) -> None:
        self.ask(f"remove {name}", lambda _, r: ev.DatasetRemovalRequested(r, name))

    def ask_load(self, name: str) -> None:
        self.ask_job(name, "load")

    def ask_free(self, name: str) -> None:
        self.ask_job(name, "free")

    def ask_job(self, name: str, kind: str, paths: tuple[str, ...] | None = None) -> None:
        """Ask for a job; with a key, the very same request is made until it is answered."""
        if paths is None:
            paths = self.timeline.random.choice(((), ("d0",), ("d1", "d2"), ("d0", block_path(1))))
        key = f"key-{next(self._keys)}" if self.timeline.chance(0.6) else ""
        fit = self.timeline.chance(0.5)
        self.ask(
            f"{kind} {name} {paths} {key}",
            lambda leading, r: ev.JobRequested(
                r, kind, name, paths, key, fit, False, select(leading.catalog, name, kind, paths)
            ),
            repeatable=bool(key),
        )

    def ask_cancel(self, name: str) -> None:
        if self._jobs:
            job_id = self.timeline.random.choice(self._jobs[-20:])
            self.ask(f"cancel {job_id}", lambda _, r: ev.JobCancelRequested(r, job_id))

    def ask_fleet(self, name: str) -> None:
        choice = self.timeline.random.choice
        spec = replace(self._spec, instances=choice((2, 3, 4)), mem_bytes=choice((64, 96)) * MIB)
        if self._spec.disk_bytes:
            spec = replace(spec, disk_bytes=choice((0, 1, 1, 1, 2)) * self._spec.disk_bytes)
        self.ask("fleet", lambda _, r: ev.FleetRequested(r, spec))

    def ask_instances(self, instances: int) -> None:
        spec = replace(self._spec, instances=instances)
        self.ask("fleet", lambda _, r: ev.FleetRequested(r, spec))

    def ask_drain(self, agent_id: str) -> None:
        """Drain an agent, or undo it."""
        if self.timeline.chance(0.4):
            self.ask(f"undo {agent_id}", lambda _, r: ev.DrainUndoRequested(r, agent_id))
            return
        key = f"key-{next(self._keys)}" if self.timeline.chance(0.6) else ""
        self.ask(f"drain {agent_id}", lambda _, r: ev.DrainRequested(r, agent_id, key), repeatable=bool(key))

    def ask_change(self, name: str) -> None:
        replicas = self.timeline.random.choice((1, 2, 3))
        self.ask("change", lambda _, r: ev.DatasetChangeRequested(r, name, replicas, None, None))

    def ask_refresh(self, name: str) -> None:
        self.ask("refresh", lambda _, r: ev.RefreshRequested(r, name))


def select(catalog: Catalog, name: str, kind: str, paths: tuple[str, ...]) -> Selection | None:
    """Return what the request's paths mean in the catalog's newest version of the dataset."""
    dataset = catalog.dataset_named(name)
    if dataset is None or dataset.current is None:
        return None
    count = dataset.current.block_count
    rules = merge_rules(dataset.rules, kind == "load", paths)
    asked = merge_rules((), True, paths)
    requested = [i for i in range(count) if is_wanted(asked, block_path(i))]
    return Selection(
        dataset.dataset_id,
        dataset.current.version,
        dataset.wanted_version,
        rules,
        bitmap(requested),
        len(requested) * BLOCK_BYTES,
        len(requested),
        bitmap([i for i in range(count) if is_wanted(rules, block_path(i))]),
    )


def bitmap(indexes: list[int]) -> bytes:
    bits = bytearray((max(indexes, default=-1) >> 3) + 1)
    for index in indexes:
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)
