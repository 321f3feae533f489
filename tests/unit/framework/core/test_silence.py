"""Who is silent because it hangs, and who because its machine cannot be reached."""

from __future__ import annotations

import pytest

from stoker.framework.core import actions as a
from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core.silence import Doubt
from stoker.framework.core.views import executor_views
from stoker.framework.model import Settings
from support.core_stage import Stage, actions_of, entries_of

SETTINGS = Settings()
TIMEOUT_MS = SETTINGS.heartbeat_timeout_ms
NOW_MS = 100_000


def count(frames: list[a.Frame], kind: type[a.Action]) -> int:
    return sum(len(actions_of(frame, kind)) for frame in frames)


def view(stage: Stage) -> tuple[str, str]:
    (row,) = executor_views(stage.catalog, stage.fleet, stage.now_ms)
    return row["state"], row["reason"]


@pytest.mark.parametrize(
    ("answers", "hangs"),
    [
        ([], False),  # nobody has asked yet
        ([(0, True)], True),
        ([(TIMEOUT_MS, True)], True),
        ([(TIMEOUT_MS + 1, True)], False),  # the answer is old: asked again
        ([(0, False)], False),
        ([(10 * TIMEOUT_MS, False)], False),
        ([(1, True), (0, False)], False),
        ([(1, False), (0, True)], False),  # it may be heard at any moment
        ([(TIMEOUT_MS + 1, False), (TIMEOUT_MS, True), (0, True)], False),
        ([(TIMEOUT_MS + 2, False), (TIMEOUT_MS + 1, True), (0, True)], True),
        ([(TIMEOUT_MS + 1, True), (TIMEOUT_MS, False), (0, True)], False),
    ],
)
def test_an_executor_hangs_where_its_machine_is_there_for_long_enough(
    answers: list[tuple[int, bool]], hangs: bool
) -> None:
    doubt = Doubt()
    for ago_ms, is_there in answers:
        doubt.probed(NOW_MS - ago_ms, is_there=is_there)
    assert doubt.hangs(NOW_MS, SETTINGS) is hangs
    doubt.told_to_end(NOW_MS, SETTINGS)
    assert doubt.hangs(NOW_MS, SETTINGS), "it was judged"


@pytest.mark.parametrize("away_ms", [7_000, 12_000, 40_000, 75_000, 200_000])
def test_one_whose_machine_is_cut_off_is_not_told_to_end_and_goes_on(away_ms: int) -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    stage.away.add("agent-1")
    frames = stage.pass_time(away_ms, beating=False)
    if away_ms > TIMEOUT_MS:
        assert view(stage) == (
            "LOST",
            f"silent for {away_ms + 500} ms; its machine does not answer, so it is not told to end: waiting for Mesos' "
            "word; without word of it, it is replaced after 300000 ms",
        )
    stage.away.clear()
    frames += stage.pass_time(6_000, beating=False)  # its heartbeat takes a while to find us
    stage.beat(launch)
    frames += stage.pass_time(2 * TIMEOUT_MS)
    assert not count(frames, a.ShutdownExecutor) and not any(frame.entries for frame in frames)
    assert stage.launch(1) is launch and view(stage)[0] == "RUNNING"


def test_one_that_is_not_heard_though_its_machine_is_back_is_told_to_end() -> None:
    stage = Stage(instances=1).start()
    stage.away.add("agent-1")
    stage.pass_time(40_000, beating=False)
    stage.away.clear()
    assert not count(stage.pass_time(TIMEOUT_MS - 1_000, beating=False), a.ShutdownExecutor)
    assert count(stage.pass_time(6_000, beating=False), a.ShutdownExecutor) == 1
    assert "told to end" in view(stage)[1]


def test_one_whose_machine_stays_away_is_replaced_after_the_delay() -> None:
    stage = Stage(instances=1, unreachable_delay_ms=60_000).start()
    launch = stage.launch(1)
    stage.away.add("agent-1")
    assert not any(frame.entries for frame in stage.pass_time(59_000, beating=False))
    frames = stage.pass_time(3_000, beating=False)
    (ended,) = [entry for frame in frames for entry in entries_of(frame, e.LaunchEnded)]
    assert ended.launch_id == launch.launch_id and "silent" in ended.reason
    assert count(frames, a.Kill) and stage.beat(launch).status == "stale"


def test_the_machine_is_asked_from_half_of_the_time_on_and_no_more_once_its_executor_is_told_to_end() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    assert not count(stage.pass_time(TIMEOUT_MS // 2 - 500, beating=False), a.ProbeExecutor)
    frames = stage.pass_time(TIMEOUT_MS // 2, beating=False)
    probes = [probe for frame in frames for probe in actions_of(frame, a.ProbeExecutor)]
    assert probes == 2 * [a.ProbeExecutor(launch.launch_id, launch.hostname, launch.port)]
    frames = stage.pass_time(60_000, beating=False)
    assert count(frames, a.ShutdownExecutor) and not count(frames, a.ProbeExecutor)


def test_an_answer_that_is_lost_is_asked_for_again_and_nobody_is_told_to_end_without_it() -> None:
    stage = Stage(instances=1, probes_frame_max=0).start()
    frames = stage.pass_time(60_000, beating=False)
    assert not count(frames, a.ShutdownExecutor) and "asking whether" in view(stage)[1]
    stage = Stage(instances=1).start()
    stage.away.add("agent-1")
    frames = stage.pass_time(60_000, beating=False)
    assert count(frames, a.ProbeExecutor) in range(17, 20), "every three seconds"


def test_a_late_answer_means_nothing_to_an_executor_that_is_heard() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    stage.pass_time(TIMEOUT_MS - 1_000, beating=False)
    stage.beat(launch)
    stage.do(ev.ExecutorProbed(launch.launch_id, True))
    stage.do(ev.ExecutorProbed(launch.launch_id + 1, True))  # of a launch that is over
    assert stage.fleet.launches[launch.launch_id].doubt is None


def test_after_a_take_over_the_machine_is_asked_where_the_executor_was_told_to_listen() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    stage.lead()
    stage.subscribe()
    stage.status(launch.task_id, "TASK_RUNNING")
    stage.away.add("agent-1")
    frames = stage.pass_time(60_000, beating=False)
    assert count(frames, a.ProbeExecutor) and not count(frames, a.ShutdownExecutor)
    assert view(stage) == (
        "LAUNCHING",
        "its task is TASK_RUNNING; it was not heard yet; its machine does not answer",
    )
    stage.away.clear()
    assert stage.beat(launch).status == "ok" and stage.launch(1).launch_id == launch.launch_id


def test_neither_those_that_mesos_explains_nor_a_silent_fleet_are_asked() -> None:
    stage = Stage(instances=1).start()
    stage.status(stage.launch(1).task_id, "TASK_UNREACHABLE")
    assert not count(stage.pass_time(60_000, beating=False), a.ProbeExecutor)
    stage = Stage(instances=4).start()
    stage.pass_time(TIMEOUT_MS + 1_000, beating=False)
    assert stage.fleet.mass_silence.reason
    assert not count(stage.pass_time(60_000, beating=False), a.ProbeExecutor)


def test_one_that_mesos_reaches_again_is_given_time_to_be_heard() -> None:
    stage = Stage(instances=1).start()
    launch = stage.launch(1)
    stage.pass_time(TIMEOUT_MS + 1_000, beating=False)
    assert "told to end" in view(stage)[1]
    stage.status(launch.task_id, "TASK_UNREACHABLE")
    stage.pass_time(60_000, beating=False)
    stage.status(launch.task_id, "TASK_RUNNING", reason="REASON_AGENT_REREGISTERED")
    assert not count(stage.pass_time(TIMEOUT_MS, beating=False), a.ShutdownExecutor)
    assert count(stage.pass_time(2_000, beating=False), a.ShutdownExecutor)


def test_a_frame_asks_a_bounded_number_of_machines() -> None:
    stage = Stage(instances=9, probes_frame_max=3).start()
    frames = []
    for _ in range(TIMEOUT_MS // 1_000):  # four of nine are silent
        for slot_id in range(5, 10):
            stage.beat(stage.launch(slot_id))
        frames += [stage.tick(), stage.tick()]
    assert {len(actions_of(frame, a.ProbeExecutor)) for frame in frames} == {0, 1, 3}
    asked = {probe.launch_id for frame in frames for probe in actions_of(frame, a.ProbeExecutor)}
    assert asked == {stage.launch(slot_id).launch_id for slot_id in range(1, 5)}


def test_where_many_are_silent_all_are_asked_in_turn() -> None:
    stage = Stage(instances=17, probes_frame_max=1).start()
    stage.away = {stage.launch(slot_id).hostname for slot_id in range(1, 9)}
    asked = set()
    for _ in range(4 * TIMEOUT_MS // 1_000):  # eight of seventeen: more than frames ask in an interval
        for slot_id in range(9, 18):
            stage.beat(stage.launch(slot_id))
        asked |= {p.launch_id for _ in range(2) for p in actions_of(stage.tick(), a.ProbeExecutor)}
    assert asked == {stage.launch(slot_id).launch_id for slot_id in range(1, 9)}
