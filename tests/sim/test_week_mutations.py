"""Mistakes that a week's checks must find, planted one by one: in the scheduler, in Mesos, in disks."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sim.embedded_mesos import Mesos
from sim.leading import Leading
from sim.week import (
    Event,
    SlowScheduler,
    Week,
    a_machine_goes_down,
    a_machine_is_taken_down,
    a_machine_is_taken_down_in_use,
    a_maintenance,
    agents_restart,
    an_agent_is_drained,
    an_agent_is_lost_and_returns,
    the_master_fails,
)
from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.actions import Frame
from stoker.framework.core.line import Waiting

SEEDS_MAX = 6


class Mistaken(Leading):
    """It decides something more, which nobody should."""

    def take(self, event: ev.Event) -> None:
        super().take(event)
        if isinstance(event, ev.Ticked) and self.ended is None:
            for entry in self.mistakes():
                stamp = ev.Stamp(next(self._event_ids), self.process.now_ms(), self._wall_ms)
                self._take_frame(stamp, event, Frame((entry,)))

    def mistakes(self) -> list[e.Entry]:
        raise NotImplementedError

    def end(self, launch: e.LaunchPlanned, reason: str) -> e.Entry:
        return e.LaunchEnded(launch.launch_id, reason, self._wall_ms)


class ForgetsVolumes(SlowScheduler):
    """A slot without an executor goes wherever there is room, whatever its volume holds."""

    class leading_class(Mistaken):
        def mistakes(self) -> list[e.Entry]:
            empty = [slot.slot_id for slot in self.catalog.slots.values() if not slot.launch_id]
            volumes = filter(None, map(self.catalog.volumes.of_slot, empty))
            return [e.VolumeReleased(volume.volume_id, "why not", self._wall_ms) for volume in volumes]


class GivesUpTheUnreachable(SlowScheduler):
    """An executor whose agent is unreachable is replaced at once."""

    class leading_class(Mistaken):
        def mistakes(self) -> list[e.Entry]:
            seen = [x for x in self.fleet.launches.values() if x.task_state == "TASK_UNREACHABLE"]
            launches = [self.catalog.launches.get(x.launch.launch_id) for x in seen]
            return [self.end(launch, "it is unreachable") for launch in launches if launch is not None]


class KillsWhatItDrains(SlowScheduler):
    """An agent's executor is ended as soon as the agent is to be drained."""

    class leading_class(Mistaken):
        def mistakes(self) -> list[e.Entry]:
            launches = [x for x in self.catalog.launches.values() if x.agent_id in self.catalog.drains]
            return [self.end(launch, f"agent {launch.hostname} is drained") for launch in launches]


class DestroysWhatNobodyUses(SlowScheduler):
    """A volume that no slot has is destroyed."""

    class leading_class(Mistaken):
        def mistakes(self) -> list[e.Entry]:
            volumes = [v for v in self.catalog.volumes.values() if not v.slot_id and v.state == "READY"]
            return [e.VolumeDoomed(volume.volume_id, "nobody uses it", self._wall_ms) for volume in volumes]


class GivesAtOnce(SlowScheduler):
    """An agent is given to its maintenance whatever is there."""

    class leading_class(Leading):
        def _act(self, waiting: Waiting, action: a.Action) -> None:
            if isinstance(action, a.DeclineInverse):
                action = a.AcceptInverse(action.offer_ids, action.refuse_ms)
            super()._act(waiting, action)


class WaitsForEver(SlowScheduler):
    """A slot waits for the agent that has its volume, however long that is away."""

    class leading_class(Leading):
        def _take_frame(self, stamp: ev.Stamp, event: ev.Event, frame: Frame) -> None:
            kept = tuple(entry for entry in frame.entries if not isinstance(entry, e.VolumeReleased))
            super()._take_frame(stamp, event, Frame(kept, frame.actions))


MISTAKES: tuple[tuple[type[SlowScheduler], Event, str], ...] = (
    (ForgetsVolumes, a_machine_goes_down, "were read again"),
    (GivesUpTheUnreachable, an_agent_is_lost_and_returns, "."),
    (KillsWhatItDrains, an_agent_is_drained, "dropped|read again"),
    (DestroysWhatNobodyUses, an_agent_is_drained, "destroyed"),
    (GivesAtOnce, a_maintenance, "is given and in use"),
    (GivesAtOnce, a_machine_is_taken_down, "is given and in use"),
    (DestroysWhatNobodyUses, a_machine_is_taken_down, "destroyed"),
    (WaitsForEver, a_machine_is_taken_down_in_use, "is not replaced"),
)


@pytest.mark.parametrize(("mutant", "event", "text"), MISTAKES, ids=lambda x: getattr(x, "__name__", ""))
def test_catches_a_scheduler_that(mutant: type[SlowScheduler], event: Event, text: str) -> None:
    found = []
    for seed in range(1, SEEDS_MAX + 1):
        try:
            Week(seed, scheduler_class=mutant).run([(event, seed % 2 == 0)])
        except AssertionError as error:
            found.append(str(error))
            break
    assert found and re.search(text, found[0]), found


class ForgetsCheckpoints(Mesos):
    """Agents that restart lose their executors."""

    def restart_agent(self, agent: object, down_ms: int) -> None:
        self.lose_agent(agent, down_ms)  # type: ignore[arg-type]


@pytest.mark.parametrize("event", [agents_restart])
def test_catches_agents_that_lose_their_executors(event: Event) -> None:
    week = Week(1)
    week.world.mesos.__class__ = ForgetsCheckpoints
    with pytest.raises(AssertionError, match="executors were launched"):
        week.run([(event, False)])


def test_catches_disks_that_lose_what_they_held() -> None:
    week = Week(1)
    mesos = week.world.mesos

    def lose_all(**options: Any) -> None:
        for directory in mesos.disks.directories.values():
            for held in directory.held.values():
                held.clear()
        Mesos.fail_over(mesos, **options)

    mesos.fail_over = lose_all  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="were read again"):
        week.run([(the_master_fails, False)])
