"""The pure core of an election: what each event leads to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.zk.codec import Term
from stoker.zk.core import leadership as core
from stoker.zk.core.leadership import Ending, Leadership, Phase, sort_candidates

TIMEOUT_MS = 1200
OURS, OTHER = "n_me-0000000005", "n_other-0000000004"
BEFORE = Term(7, 1, "somebody")
AFTER = Term(8, 1, "me of this session")


def connected(*, at_ms: int = 1000) -> Leadership:
    leadership = Leadership(candidate="me", owner="me of this session")
    leadership.observe(core.Connected(at_ms, TIMEOUT_MS))
    return leadership


def waiting() -> Leadership:
    leadership = connected()
    leadership.observe(core.Joined())
    leadership.observe(core.Entered(OURS))
    leadership.observe(core.CandidatesSeen((OURS, OTHER)))
    assert leadership.phase is Phase.WAITING
    return leadership


def first() -> Leadership:
    leadership = waiting()
    assert leadership.observe(core.CandidatesSeen((OURS,))) == [core.TakeTurn()]
    return leadership


def claiming() -> Leadership:
    leadership = first()
    assert leadership.observe(core.Claimed()) == [core.ReadTerm()]
    assert leadership.observe(core.TermSeen(BEFORE, 3)) == [core.WriteTerm(OURS, AFTER, 3)]
    return leadership


def leading() -> Leadership:
    leadership = claiming()
    assert leadership.observe(core.TermWritten(4)) == [core.Lead(AFTER, 4)]
    assert leadership.phase is Phase.LEADING
    return leadership


def test_the_whole_way_to_lead() -> None:
    leadership = leading()
    assert leadership.lead == core.Lead(AFTER, fence=4)
    assert leadership.end is None


def test_candidates_can_be_seen_without_being_one() -> None:
    leadership = connected()
    assert leadership.observe(core.Prepared()) == [core.ListCandidates()]
    assert leadership.observe(core.CandidatesSeen((OTHER,))) == []
    assert leadership.observe(core.CandidatesChanged()) == [core.ListCandidates()]
    assert leadership.candidates == (OTHER,)
    leadership.observe(core.Suspended())
    assert leadership.observe(core.Connected(1100, TIMEOUT_MS)) == [core.ListCandidates()]


def test_nothing_is_listed_before_the_path_is_there() -> None:
    leadership = Leadership(candidate="me", owner="me")
    assert leadership.observe(core.Connected(0, TIMEOUT_MS)) == []


# The election


def test_who_is_not_the_first_waits() -> None:
    leadership = waiting()
    assert leadership.observe(core.CandidatesSeen((OTHER, OURS, "n_third-0000000006"))) == []
    assert leadership.candidates == (OTHER, OURS, "n_third-0000000006")


def test_a_list_that_is_older_than_our_node_says_nothing() -> None:
    leadership = connected()
    leadership.observe(core.Joined())
    assert leadership.observe(core.CandidatesSeen((OTHER,))) == []
    assert leadership.phase is Phase.ENTERING


def test_an_entry_whose_answer_was_lost_is_found_by_its_name() -> None:
    """Trap: a create can have happened although the client saw a lost connection; the node would stand there for ever."""
    leadership = connected()
    assert leadership.observe(core.Joined()) == [core.Enter()]
    leadership.observe(core.Suspended())
    assert leadership.observe(core.EntryDoubtful()) == []
    assert leadership.observe(core.Connected(1100, TIMEOUT_MS)) == [core.ListCandidates()]
    assert leadership.observe(core.CandidatesSeen((OURS,))) == [core.TakeTurn()]


def test_an_entry_that_never_happened_is_made_again() -> None:
    leadership = connected()
    leadership.observe(core.Joined())
    assert leadership.observe(core.EntryDoubtful()) == [core.ListCandidates()]
    assert leadership.observe(core.CandidatesSeen((OTHER,))) == [core.Enter()]


def test_a_second_node_of_ours_is_withdrawn() -> None:
    """When both the lost request and the one that was sent instead were done."""
    leadership = connected()
    leadership.observe(core.Joined())
    twin = "n_me-0000000009"
    assert leadership.observe(core.CandidatesSeen((twin, OURS))) == [core.Withdraw(twin), core.TakeTurn()]
    assert leadership.node == OURS


@pytest.mark.parametrize(
    ("make", "ending"),
    [
        (waiting, Ending.UNAVAILABLE),
        (first, Ending.FENCED),
        (claiming, Ending.FENCED),
        (leading, Ending.FENCED),
    ],
)
def test_whose_node_was_deleted_is_out(make: object, ending: Ending) -> None:
    leadership = make()  # type: ignore[operator]
    (end,) = leadership.observe(core.CandidatesSeen((OTHER,)))
    assert end.ending is ending
    assert leadership.phase is Phase.OVER


def test_names_that_are_no_candidates_are_passed_over() -> None:
    names = ["", "n_", "x-0000000001", "n_a-123", "n_a-00000000x1", "n_b-0000000007", "n_a-b-0000000003"]
    assert sort_candidates(names) == ["n_a-b-0000000003", "n_b-0000000007"]


def test_the_sequence_number_goes_round() -> None:
    """Trap: it has 32 bits and a sign, counts on after deletions, and is negative after 2,147,483,647."""
    order = ["n_c-2147483646", "n_b-2147483647", "n_e--2147483648", "n_a--2147483647"]
    assert sort_candidates(sorted(order)) == order
    assert sort_candidates(["n_a-0000000000", "n_b--0000000001"]) == ["n_b--0000000001", "n_a-0000000000"]


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**31 - 1), unique=True, max_size=8))
def test_candidates_are_sorted_wherever_the_counter_stands(start: int, steps: list[int]) -> None:
    def name(step: int) -> str:
        number = (start + step) % 2**32
        return f"n_x-{number - 2**32 if number >= 2**31 else number:010d}"

    expected = [name(step) for step in sorted(steps)]
    assert sort_candidates(name(step) for step in steps) == expected


# The epoch


def test_a_term_that_was_written_without_an_answer_is_ours() -> None:
    leadership = claiming()
    leadership.observe(core.Suspended())
    assert leadership.observe(core.TermDoubtful()) == []
    assert leadership.observe(core.Connected(1100, TIMEOUT_MS)) == [
        core.ListCandidates(),
        core.WriteTerm(OURS, AFTER, 3),
    ]
    assert leadership.observe(core.TermChanged()) == [core.ReadTerm()]
    assert leadership.observe(core.TermSeen(AFTER, 4)) == [core.Lead(AFTER, 4)]


def test_a_doubt_that_is_told_after_the_reconnection_is_settled_too() -> None:
    leadership = claiming()
    leadership.observe(core.Suspended())
    leadership.observe(core.Connected(1100, TIMEOUT_MS))
    assert leadership.observe(core.TermDoubtful()) == [core.WriteTerm(OURS, AFTER, 3)]
    assert leadership.observe(core.TermWritten(4)) == [core.Lead(AFTER, 4)]


def test_a_term_that_looks_like_ours_but_is_not_the_next_version_is_not_ours() -> None:
    leadership = claiming()
    leadership.observe(core.TermChanged())
    (again,) = leadership.observe(core.TermSeen(AFTER, 5))
    assert again == core.WriteTerm(OURS, Term(9, 1, "me of this session"), 5)


def test_another_s_term_is_topped_but_not_for_ever() -> None:
    leadership = claiming()
    for number in range(core.CLAIM_TRIES_MAX - 1):
        assert leadership.observe(core.TermChanged()) == [core.ReadTerm()]
        (write,) = leadership.observe(core.TermSeen(Term(20 + number, 1, "restore"), 9 + number))
        assert write == core.WriteTerm(OURS, Term(21 + number, 1, "me of this session"), 9 + number)
    leadership.observe(core.TermChanged())
    (end,) = leadership.observe(core.TermSeen(Term(30, 1, "restore"), 20))
    assert end.ending is Ending.FENCED and "restore" in end.reason


def test_who_has_no_node_any_more_gets_no_epoch() -> None:
    leadership = claiming()
    (end,) = leadership.observe(core.NodeMissing())
    assert end.ending is Ending.FENCED
    assert leadership.lead is None


def test_a_claim_without_a_connection_waits_for_it() -> None:
    leadership = first()
    leadership.observe(core.Suspended())
    assert leadership.observe(core.Claimed()) == []
    assert core.ReadTerm() in leadership.observe(core.Connected(1100, TIMEOUT_MS))


def test_a_lost_epoch_ends_it() -> None:
    leadership = leading()
    assert leadership.observe(core.EpochLost("taken")) == [core.End(Ending.FENCED, "taken")]
    assert leadership.observe(core.Ticked(10**9)) == []


# Time


def test_the_deadline_is_two_thirds_of_the_timeout_after_the_newest_answered_request_was_sent() -> None:
    leadership = leading()
    assert leadership.deadline_ms == 1000 + 800
    leadership.observe(core.Answered(1500))
    leadership.observe(core.Answered(1200))  # of an older request: says nothing new
    assert leadership.deadline_ms == 2300
    assert not leadership.is_late(2299)
    assert leadership.is_late(2300)


def test_a_leader_whose_deadline_passed_is_over_though_nobody_told_it_that_its_session_ended() -> None:
    """Trap: kazoo tells of a lost session only after it has connected again."""
    leadership = leading()
    (end,) = leadership.observe(core.Ticked(1800))
    assert end.ending is Ending.UNAVAILABLE
    assert leadership.observe(core.Answered(1799)) == []
    assert leadership.phase is Phase.OVER


def test_the_deadline_also_counts_while_claiming() -> None:
    leadership = claiming()
    assert leadership.observe(core.Ticked(1800))[0].__class__ is core.End


@pytest.mark.parametrize("make", [connected, waiting, first])
def test_who_does_not_lead_outlives_the_deadline_and_ends_after_a_timeout_without_connection(
    make: object,
) -> None:
    leadership = make()  # type: ignore[operator]
    leadership.observe(core.Suspended())
    assert leadership.observe(core.Ticked(2199)) == []
    (end,) = leadership.observe(core.Ticked(2200))
    assert end.ending is Ending.UNAVAILABLE


@pytest.mark.parametrize(("make", "deadline_ms"), [(waiting, 2500), (claiming, 2500), (leading, 1800)])
def test_a_new_connection_of_the_same_session_is_a_contact_but_not_for_a_leader(
    make: object, deadline_ms: int
) -> None:
    """ZooKeeper's leader takes a session up again by itself, also when it is cut off from the other servers."""
    leadership = make()  # type: ignore[operator]
    leadership.observe(core.Suspended())
    assert core.ListCandidates() in leadership.observe(core.Connected(1700, TIMEOUT_MS))
    assert leadership.deadline_ms == deadline_ms


@pytest.mark.parametrize(("make", "deadline_ms"), [(waiting, 2300), (claiming, 2300), (leading, 1800)])
def test_what_no_quorum_answered_is_no_contact_for_a_leader(make: object, deadline_ms: int) -> None:
    """Trap: `sync` is answered by ZooKeeper's leader alone, also by one that is cut off and has not noticed."""
    leadership = make()  # type: ignore[operator]
    leadership.observe(core.Answered(1500, is_quorum=False))
    assert leadership.deadline_ms == deadline_ms
    leadership.observe(core.Answered(1600))
    assert leadership.deadline_ms == 2400


def test_a_sync_before_it_led_does_not_help_a_leader() -> None:
    leadership = claiming()
    leadership.observe(core.Answered(1500, is_quorum=False))
    leadership.observe(core.Answered(1200))
    leadership.observe(core.TermWritten(4))
    assert leadership.deadline_ms == 2000


@pytest.mark.parametrize(("make", "fence"), [(waiting, None), (claiming, None), (leading, 4)])
def test_a_leader_probes_with_its_fence(make: object, fence: int | None) -> None:
    leadership = make()  # type: ignore[operator]
    assert leadership.observe(core.Ticked(1001)) == [core.Probe(fence)]


def test_a_node_that_was_deleted_before_it_was_ever_listed_ends_the_candidacy() -> None:
    """Else this scheduler would wait for ever, a candidate that nobody sees. Found by the simulation."""
    leadership = connected()
    leadership.observe(core.Joined())
    assert leadership.observe(core.Entered(OURS)) == [core.ListCandidates()]
    (end,) = leadership.observe(core.CandidatesSeen((OTHER,)))
    assert isinstance(end, core.End) and end.ending is Ending.UNAVAILABLE


def test_a_claim_whose_very_first_read_was_lost_reads_again() -> None:
    """The connection broke between the turn and the term. Found by the simulation."""
    leadership = first()
    assert leadership.observe(core.Claimed()) == [core.ReadTerm()]
    leadership.observe(core.Suspended())
    assert leadership.observe(core.TermDoubtful()) == []
    commands = leadership.observe(core.Connected(1100, TIMEOUT_MS))
    assert commands == [core.ListCandidates(), core.ReadTerm()]


def test_probes_keep_the_contact_fresh() -> None:
    leadership = leading()
    assert leadership.probe_interval_ms == 100
    assert leadership.observe(core.Ticked(1001)) == [core.Probe(4)]
    assert leadership.observe(core.Ticked(1002)) == []  # one at a time
    leadership.observe(core.Answered(1001))
    assert leadership.observe(core.Ticked(1050)) == []  # not so soon
    assert leadership.observe(core.Ticked(1101)) == [core.Probe(4)]


def test_a_server_that_does_not_answer_is_left() -> None:
    """Trap: kazoo's own pings do not run while there are other requests, so it would stay with a frozen server."""
    leadership = leading()
    leadership.observe(core.Ticked(1001))
    assert leadership.observe(core.Ticked(1300)) == []
    assert leadership.observe(core.Ticked(1301)) == [core.Reconnect()]
    assert leadership.observe(core.Ticked(1302)) == []
    leadership.observe(core.Suspended())
    leadership.observe(core.Connected(1400, TIMEOUT_MS))
    assert leadership.observe(core.Ticked(1401)) == [core.Probe(4)]


# Any order

ANY_EVENT = st.one_of(
    st.builds(core.Connected, st.integers(0, 5000), st.just(TIMEOUT_MS)),
    st.just(core.Suspended()),
    st.builds(core.Answered, st.integers(0, 5000), st.booleans()),
    st.just(core.Expired("gone")),
    st.just(core.Prepared()),
    st.just(core.EntryDoubtful()),
    st.builds(core.CandidatesSeen, st.lists(st.sampled_from([OURS, OTHER, "n_me-0000000009"])).map(tuple)),
    st.just(core.CandidatesChanged()),
    st.builds(core.TermSeen, st.sampled_from([BEFORE, AFTER]), st.integers(0, 5)),
    st.builds(core.TermWritten, st.integers(1, 5)),
    st.just(core.TermChanged()),
    st.just(core.TermDoubtful()),
    st.just(core.NodeMissing()),
    st.just(core.EpochLost("taken")),
    st.builds(core.Ticked, st.integers(0, 9000)),
)


@given(st.lists(ANY_EVENT, max_size=40), st.integers(0, 20), st.integers(0, 20))
def test_any_order_of_events(events: list[core.Event], joined_at: int, claimed_at: int) -> None:
    leadership = Leadership(candidate="me", owner="me of this session")
    done: list[core.Command] = []
    deadline_ms = -1
    for place, event in enumerate(events):
        if place == joined_at:
            done += leadership.observe(core.Joined())
        if place >= claimed_at and leadership.phase is Phase.FIRST:
            done += leadership.observe(core.Claimed())
        if isinstance(event, core.TermWritten) and not any(isinstance(c, core.WriteTerm) for c in done):
            continue  # no answer without a question
        was_over = leadership.end is not None
        phase = leadership.phase
        commands = leadership.observe(event)
        assert not (was_over and commands)
        done += commands
        if leadership.phase is not phase:
            deadline_ms = -1  # a leader's is another
        assert leadership.deadline_ms is None or leadership.deadline_ms >= deadline_ms
        deadline_ms = leadership.deadline_ms or -1
    leads = [place for place, command in enumerate(done) if isinstance(command, core.Lead)]
    ends = [place for place, command in enumerate(done) if isinstance(command, core.End)]
    assert len(leads) <= 1 and len(ends) <= 1
    assert not ends or ends == [len(done) - 1]
    if leads:
        before = done[: leads[0]]
        assert core.TakeTurn() in before
        assert any(isinstance(command, core.WriteTerm) for command in before)
