"""The pure core of appends: what each answer means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.zk.core import append as core
from stoker.zk.core.append import AppendPhase, AppendWindow
from stoker.zk.core.leadership import Ending

BATCH = core.Submitted(first_index=5, record_count=3, data=b"ours")
SEND = core.Send(5, b"ours")
DONE = core.Acknowledge(5, 8)


def sent() -> AppendWindow:
    window = AppendWindow(5)
    assert window.observe(BATCH) == [SEND]
    return window


def doubtful() -> AppendWindow:
    window = sent()
    assert window.observe(core.AnswerLost()) == [core.AwaitConnection()]
    return window


def sent_again() -> AppendWindow:
    window = doubtful()
    assert window.observe(core.Reconnected()) == [SEND]  # the very same
    return window


@pytest.mark.parametrize("make", [sent, sent_again])
def test_a_batch_that_was_created_is_acknowledged(make: object) -> None:
    window = make()  # type: ignore[operator]
    assert window.observe(core.Created()) == [DONE]
    assert (window.next_index, window.phase) == (8, AppendPhase.IDLE)
    assert window.observe(core.Submitted(8, 1, b"next")) == [core.Send(8, b"next")]


@pytest.mark.parametrize("make", [sent, sent_again])
def test_a_node_with_our_bytes_is_ours(make: object) -> None:
    """Trap: after a lost connection nobody knows; the node's bytes, read in the same session, do."""
    window = make()  # type: ignore[operator]
    assert window.observe(core.NodeExists()) == [core.ReadBack(5)]
    assert window.observe(core.NodeRead(b"ours")) == [DONE]


def test_a_reading_whose_answer_is_lost_begins_again() -> None:
    window = sent_again()
    window.observe(core.NodeExists())
    assert window.observe(core.AnswerLost()) == [core.AwaitConnection()]
    assert window.observe(core.Reconnected()) == [SEND]
    assert window.observe(core.NodeExists()) == [core.ReadBack(5)]
    assert window.observe(core.NodeRead(b"ours")) == [DONE]


@pytest.mark.parametrize("data", [b"ours", b"x" * 300_000])
def test_a_batch_that_is_never_answered_is_given_up_in_doubt(data: bytes) -> None:
    """Trap: a server with a smaller jute.maxbuffer ends the connection at each sending, and says nothing."""
    window = AppendWindow(5)
    window.observe(core.Submitted(5, 3, data))
    for _ in range(core.SENDINGS_MAX - 1):
        assert window.observe(core.AnswerLost()) == [core.AwaitConnection()]
        assert window.observe(core.Reconnected()) == [core.Send(5, data)]
    (end,) = window.observe(core.AnswerLost())
    assert (end.ending, end.is_doubtful) == (Ending.UNAVAILABLE, True)
    assert f"of {len(data)} bytes" in end.reason and "jute.maxbuffer" in end.reason
    assert (window.phase, window.next_index) == (AppendPhase.OVER, 5)


def test_what_never_went_out_is_no_sending() -> None:
    """A request that finds no connection fails at once, perhaps many times before there is one."""
    window = sent()
    for _ in range(10 * core.SENDINGS_MAX):
        assert window.observe(core.AnswerLost(was_sent=False)) == [core.AwaitConnection()]
        assert window.observe(core.Reconnected()) == [SEND]
    assert window.observe(core.Created()) == [DONE]


def test_each_batch_has_its_own_sendings() -> None:
    window = AppendWindow(0)
    for index in range(2 * core.SENDINGS_MAX):
        send = core.Send(index, b"x")
        assert window.observe(core.Submitted(index, 1, b"x")) == [send]
        assert window.observe(core.AnswerLost()) == [core.AwaitConnection()]
        assert window.observe(core.Reconnected()) == [send]
        assert window.observe(core.Created()) == [core.Acknowledge(index, index + 1)]


SESSION_OVER = core.SessionOver(Ending.UNAVAILABLE, "gone")


@pytest.mark.parametrize(
    ("make", "event", "ending", "is_doubtful"),
    [
        (sent, core.BadVersion(), Ending.FENCED, False),
        (sent, core.NoNode(), Ending.FENCED, False),
        (sent, core.Refused("quota"), Ending.UNAVAILABLE, False),
        (sent, SESSION_OVER, Ending.UNAVAILABLE, True),
        (doubtful, SESSION_OVER, Ending.UNAVAILABLE, True),
        (doubtful, core.SessionOver(Ending.FENCED, "deposed"), Ending.FENCED, True),
        (sent_again, core.BadVersion(), Ending.FENCED, True),
        (sent_again, core.NoNode(), Ending.FENCED, True),
        (sent_again, core.Refused("quota"), Ending.UNAVAILABLE, True),
        (sent_again, SESSION_OVER, Ending.UNAVAILABLE, True),
        (lambda: AppendWindow(5), SESSION_OVER, Ending.UNAVAILABLE, False),
    ],
)
def test_how_it_ends(make: object, event: core.AppendEvent, ending: Ending, is_doubtful: bool) -> None:
    window = make()  # type: ignore[operator]
    (end,) = window.observe(event)
    assert (end.ending, end.is_doubtful) == (ending, is_doubtful)
    assert window.phase is AppendPhase.OVER
    assert window.observe(BATCH) == []
    assert window.next_index == 5


@pytest.mark.parametrize("data", [b"theirs", None])
def test_a_node_with_other_bytes_is_somebody_else_s(data: bytes | None) -> None:
    window = sent()
    window.observe(core.NodeExists())
    (end,) = window.observe(core.NodeRead(data))
    assert end.ending is Ending.FENCED


def test_only_the_next_record_may_come_and_one_batch_at_a_time() -> None:
    with pytest.raises(AssertionError, match="record 5 comes next"):
        AppendWindow(5).observe(core.Submitted(6, 1, b""))
    with pytest.raises(AssertionError, match="one batch at a time"):
        sent().observe(core.Submitted(8, 1, b""))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["done", "done, unheard", "lost", "lost reading"]),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_what_is_acknowledged_is_there_once_whatever_gets_lost(fates: list[tuple[str, bool]]) -> None:
    """A log that does what it is asked, over a network that loses requests and answers."""
    log: dict[int, bytes] = {}
    window = AppendWindow(0)
    fate = iter(fates)
    acknowledged = 0
    for number in range(5):
        data = b"%d" % number
        commands = window.observe(core.Submitted(window.next_index, 2, data))
        lost_count = 0
        while not isinstance(commands[0], core.Acknowledge):
            (command,) = commands
            how, _ = next(fate, ("done", True))
            if lost_count == core.SENDINGS_MAX - 1:
                how = "done"  # one more would end it
            event: core.AppendEvent
            match command:
                case core.AwaitConnection():
                    event = core.Reconnected()
                case core.Send(index, frame):
                    was_there = index in log
                    if how != "lost":
                        log.setdefault(index, frame)
                    event = core.NodeExists() if was_there else core.Created()
                    event = event if how in ("done", "lost reading") else core.AnswerLost()
                case core.ReadBack(index):
                    event = core.AnswerLost() if how == "lost reading" else core.NodeRead(log.get(index))
                case _:
                    raise AssertionError(command)
            lost_count += isinstance(event, core.AnswerLost)
            commands = window.observe(event)
        acknowledged += 1
        assert log[2 * number] == data
    assert window.next_index == 10
    assert sorted(log) == [0, 2, 4, 6, 8] and acknowledged == 5
