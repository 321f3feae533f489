"""One scheduler's part in the election, for the life of one ZooKeeper session. Pure: events in, commands out.

Theory of operation. A session is connected or not, and has a *contact*: when the newest request was sent that the
ensemble answered. At that moment the session lived, so it lives for the negotiated timeout from then on, and nobody else
can lead before that is over: our election node stands in front of theirs. The *deadline* is two thirds of the timeout
after the contact. A leader that has passed it does nothing more, whether or not anybody told it that its session ended
(kazoo tells so only after it has connected again). Probes keep the contact fresh.

For a leader only what a quorum answered is a contact: writes and all other multis, done or refused. A ping is answered by
any server; a `sync`, and the return to a session, by ZooKeeper's leader alone, also by one that is cut off from the
others and has not noticed yet. So a leader's probe is a multi, of its fence alone.

    WATCHING --Join--> ENTERING --Entered--> WAITING --nobody before us--> FIRST --Claim--> CLAIMING --written--> LEADING
        any --Expired, not connected for a timeout, the deadline of one who claims or leads, epoch lost--> OVER

OVER is for ever: the next session has a Leadership of its own.

Election: each candidate has one ephemeral node, named by its own uuid and by a sequence number of the ensemble; the
lowest number leads. A node whose creation was not answered is found by the uuid, so that none is left behind, and a
second one of ours is deleted. Whoever is first stays first until its session ends.

Epoch: to lead is to write the term, on the condition that our election node is there and that the term is as it was
read. The version that this gives the term's znode is the *fence*, the condition of every later write. If the answer is
lost, the same write is sent again; where the term has changed then, it is read, and is either just what we wrote, or
somebody else's.

What is not here: what a journal holds (`append` has the window of writes), and time: it comes in with `Ticked`.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from stoker.zk.codec import Term

SESSION_TIMEOUT_MS = 10_000  # unless somebody says another
SESSION_TIMEOUT_MS_MIN, SESSION_TIMEOUT_MS_MAX = 1_000, 600_000
PROBES_PER_TIMEOUT = 12  # a probe is sent this often in one session timeout
UNANSWERED_PER_TIMEOUT = 4  # a probe that waits longer than this part of it means: try another server
CLAIM_TRIES_MAX = 3

_NODE = re.compile(r"n_.*[^-]-([0-9]{10}|-[0-9]{9,10})")  # ten characters at least, the sign among them
_SEQUENCE_COUNT = 2**32  # ZooKeeper counts in 32 bits with a sign, and goes round


class Phase(enum.Enum):
    WATCHING = "watching"
    ENTERING = "entering"
    WAITING = "waiting"
    FIRST = "first"
    CLAIMING = "claiming"
    LEADING = "leading"
    OVER = "over"


class Ending(enum.Enum):
    """Why it is over."""

    UNAVAILABLE = "unavailable"  # no ZooKeeper, no session, or no time left
    FENCED = "fenced"  # somebody else has the journal


# What happened.


@dataclass(frozen=True, slots=True)
class Connected:
    """The session begins, or is connected again. `sent_ms`: when the ensemble was asked for that, or any time before."""

    sent_ms: int
    timeout_ms: int  # as negotiated


@dataclass(frozen=True, slots=True)
class Suspended:
    """The connection is gone; the session may live. All watches are gone, all requests in flight are in doubt."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was sent then was answered; `is_quorum`: by a quorum, not just by ZooKeeper's leader (`sync`)."""

    sent_ms: int
    is_quorum: bool = True


@dataclass(frozen=True, slots=True)
class Expired:
    """The session is no more, or is given up."""

    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The journal's path is there, so the candidates can be listed, also by who is none."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The caller wants to be a candidate from now on."""


@dataclass(frozen=True, slots=True)
class Entered:
    """Our election node was made."""

    node: str


@dataclass(frozen=True, slots=True)
class EntryDoubtful:
    """Whether our election node was made is not known."""


@dataclass(frozen=True, slots=True)
class CandidatesSeen:
    """The names of all election nodes, in any order; a watch tells of the next change."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CandidatesChanged:
    """The watch on the election nodes fired."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The caller wants to lead; only who is first may."""


@dataclass(frozen=True, slots=True)
class TermSeen:
    """The term as the ensemble has it, read after a `sync`, and its znode's version."""

    term: Term
    version: int


@dataclass(frozen=True, slots=True)
class TermWritten:
    """The term is ours; `version` is that of its znode now."""

    version: int


@dataclass(frozen=True, slots=True)
class TermChanged:
    """Refused: the term is not of the version that was told (any more)."""


@dataclass(frozen=True, slots=True)
class TermDoubtful:
    """Whether the term was written is not known."""


@dataclass(frozen=True, slots=True)
class NodeMissing:
    """Refused: our election node, or the term itself, is not there."""


@dataclass(frozen=True, slots=True)
class EpochLost:
    """A write or a probe of ours was refused by the fence."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went on. To be told at least PROBES_PER_TIMEOUT times in a session timeout."""

    now_ms: int


Event = (
    Connected
    | Suspended
    | Answered
    | Expired
    | Prepared
    | Joined
    | Entered
    | EntryDoubtful
    | CandidatesSeen
    | CandidatesChanged
    | Claimed
    | TermSeen
    | TermWritten
    | TermChanged
    | TermDoubtful
    | NodeMissing
    | EpochLost
    | Ticked
)


# What to do.


@dataclass(frozen=True, slots=True)
class Probe:
    """Without a fence: `sync`; with it: a multi that checks it. Then tell Answered, or EpochLost."""

    fence: int | None


@dataclass(frozen=True, slots=True)
class Reconnect:
    """The server does not answer: drop the connection, so that another server is tried."""


@dataclass(frozen=True, slots=True)
class Enter:
    """Make our election node, ephemeral and sequential, then tell Entered or EntryDoubtful."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Delete an election node that is ours, and one too many; nothing to tell."""

    node: str


@dataclass(frozen=True, slots=True)
class ListCandidates:
    """List the election nodes with a watch, then tell CandidatesSeen, and CandidatesChanged when it fires."""


@dataclass(frozen=True, slots=True)
class ReadTerm:
    """`sync`, then read the term, then tell TermSeen or NodeMissing."""


@dataclass(frozen=True, slots=True)
class WriteTerm:
    """In one multi: check that `node` is there, set the term if it is of `version`. Tell how that went."""

    node: str
    term: Term
    version: int


@dataclass(frozen=True, slots=True)
class TakeTurn:
    """Nobody stands before us: the caller may claim."""


@dataclass(frozen=True, slots=True)
class Lead:
    """The epoch is ours. `fence` is the version of the term's znode, which every write is to check."""

    term: Term
    fence: int


@dataclass(frozen=True, slots=True)
class End:
    """Over: no action, no answer and no write may follow. Close the session."""

    ending: Ending
    reason: str


Command = Probe | Reconnect | Enter | Withdraw | ListCandidates | ReadTerm | WriteTerm | TakeTurn | Lead | End


class Leadership:
    """See the module. `observe` events in the order in which they happened; do the commands in order."""

    def __init__(self, *, candidate: str, owner: str) -> None:
        """`candidate` names our election node and nobody else's; `owner` must be unlike that of any other session."""
        self._candidate = candidate
        self._owner = owner
        self._phase = Phase.WATCHING
        self._is_connected = self._is_prepared = False
        self._timeout_ms = 0
        self._contact_ms: int | None = None
        self._quorum_ms: int | None = None  # the same, of what a quorum answered
        self._probe_sent_ms: int | None = None  # of the one that is not answered yet
        self._probe_wanted_ms: int | None = None
        self._node = ""
        self._candidates: tuple[str, ...] = ()
        self._is_entry_doubtful = False
        self._claim: WriteTerm | None = None
        self._is_claim_doubtful = False
        self._claim_tries = 0
        self._lead: Lead | None = None
        self._end: End | None = None

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    @property
    def node(self) -> str:
        """Name of our election node, "" before it is known."""
        return self._node

    @property
    def candidates(self) -> tuple[str, ...]:
        """All election nodes as last seen, the first leads or is about to."""
        return self._candidates

    @property
    def lead(self) -> Lead | None:
        """What we lead with; stays after the end."""
        return self._lead

    @property
    def end(self) -> End | None:
        return self._end

    @property
    def timeout_ms(self) -> int:
        """The session's timeout as negotiated, 0 before the session."""
        return self._timeout_ms

    @property
    def deadline_ms(self) -> int | None:
        """From this moment on a leader does nothing more; None before the session."""
        contact_ms = self._quorum_ms if self._phase is Phase.LEADING else self._contact_ms
        return None if contact_ms is None else contact_ms + self._timeout_ms * 2 // 3

    @property
    def probe_interval_ms(self) -> int:
        return max(1, self._timeout_ms // PROBES_PER_TIMEOUT)

    def is_late(self, now_ms: int) -> bool:
        """Say whether the deadline has passed: true for a leader means that it must do nothing more."""
        deadline_ms = self.deadline_ms
        return deadline_ms is not None and now_ms >= deadline_ms

    def observe(self, event: Event) -> list[Command]:
        """Take in what happened and return what to do, in order. After the end nothing is to be done."""
        if self._phase is Phase.OVER:
            return []
        match event:
            case Connected():
                return self._connected(event)
            case Suspended():
                self._is_connected, self._probe_sent_ms = False, None
                return []
            case Answered():
                return self._answered(event)
            case Expired(reason):
                return self._over(Ending.UNAVAILABLE, reason)
            case Ticked(now_ms):
                return self._ticked(now_ms)
            case EpochLost(reason):
                return self._over(Ending.FENCED, reason)
            case Prepared():
                self._is_prepared = True
                return [ListCandidates()]
            case Joined() | Entered() | EntryDoubtful() | CandidatesSeen() | CandidatesChanged():
                return self._elect(event)
            case Claimed() | TermSeen() | TermWritten() | TermChanged() | TermDoubtful() | NodeMissing():
                return self._take(event)
            case _:
                assert_never(event)

    # The session

    def _connected(self, event: Connected) -> list[Command]:
        self._is_connected, self._timeout_ms, self._probe_sent_ms = True, event.timeout_ms, None
        self._contact_ms = max(event.sent_ms, self._contact_ms or event.sent_ms)
        if self._quorum_ms is None:
            self._quorum_ms = event.sent_ms  # a session begins with a write
        self._probe_wanted_ms = None
        if self._phase is Phase.WATCHING and not self._is_prepared:
            return []
        commands: list[Command] = [ListCandidates()]  # the watch went with the connection
        if self._is_claim_doubtful:
            commands += self._resend_claim()
        elif self._phase is Phase.CLAIMING and self._claim is None:
            commands.append(ReadTerm())
        return commands

    def _answered(self, event: Answered) -> list[Command]:
        sent_ms = event.sent_ms
        if self._contact_ms is None or sent_ms > self._contact_ms:
            self._contact_ms = sent_ms
        if event.is_quorum and (self._quorum_ms is None or sent_ms > self._quorum_ms):
            self._quorum_ms = sent_ms
        if self._probe_sent_ms is not None and sent_ms >= self._probe_sent_ms:
            self._probe_sent_ms = None
        return []

    def _ticked(self, now_ms: int) -> list[Command]:
        if self._phase in (Phase.CLAIMING, Phase.LEADING) and self.is_late(now_ms):
            return self._over(Ending.UNAVAILABLE, "ZooKeeper has not answered for two thirds of the session")
        if not self._is_connected:
            if self._contact_ms is None or now_ms < self._contact_ms + self._timeout_ms:
                return []
            return self._over(Ending.UNAVAILABLE, "no ZooKeeper server answered for a whole session timeout")
        if self._probe_sent_ms is not None:
            if now_ms - self._probe_sent_ms < self._timeout_ms // UNANSWERED_PER_TIMEOUT:
                return []
            self._is_connected, self._probe_sent_ms = False, None
            return [Reconnect()]
        if self._probe_wanted_ms is not None and now_ms < self._probe_wanted_ms:
            return []
        self._probe_sent_ms, self._probe_wanted_ms = now_ms, now_ms + self.probe_interval_ms
        return [Probe(self._lead.fence if self._lead is not None else None)]

    def _over(self, ending: Ending, reason: str) -> list[Command]:
        self._phase, self._end, self._is_connected = Phase.OVER, End(ending, reason), False
        return [self._end]

    # The election

    def _elect(
        self, event: Joined | Entered | EntryDoubtful | CandidatesSeen | CandidatesChanged
    ) -> list[Command]:
        match event:
            case Joined():
                assert self._phase is Phase.WATCHING, "join once"
                self._phase = Phase.ENTERING
                return [Enter()]
            case Entered(node):
                assert is_node_of(node, self._candidate)
                self._is_entry_doubtful = False
                if self._phase is Phase.ENTERING:  # every list from now on holds it, or it was deleted
                    self._phase, self._node = Phase.WAITING, node
                return [ListCandidates()]
            case EntryDoubtful():
                self._is_entry_doubtful = True
                return [ListCandidates()] if self._is_connected else []
            case CandidatesSeen(nodes):
                return self._seen(sort_candidates(nodes))
            case CandidatesChanged():
                return [ListCandidates()]
            case _:
                assert_never(event)

    def _seen(self, nodes: list[str]) -> list[Command]:
        self._candidates = tuple(nodes)
        if self._phase is Phase.WATCHING:
            return []
        ours = [node for node in nodes if is_node_of(node, self._candidate)]
        if not ours:
            return self._not_seen()
        commands: list[Command] = [Withdraw(node) for node in ours[1:]]
        self._node, self._is_entry_doubtful = ours[0], False
        if self._phase is Phase.ENTERING:
            self._phase = Phase.WAITING
        if self._phase is Phase.WAITING and nodes[0] == self._node:
            self._phase = Phase.FIRST
            commands.append(TakeTurn())
        return commands

    def _not_seen(self) -> list[Command]:
        """Our node is not among them: not made yet, or somebody deleted it."""
        if self._phase is Phase.ENTERING:
            if not self._is_entry_doubtful:
                return []  # this list is older than our node
            self._is_entry_doubtful = False
            return [Enter()]
        ending = Ending.UNAVAILABLE if self._phase is Phase.WAITING else Ending.FENCED
        return self._over(ending, "our election node was deleted: the next candidate takes over")

    # The epoch

    def _take(
        self, event: Claimed | TermSeen | TermWritten | TermChanged | TermDoubtful | NodeMissing
    ) -> list[Command]:
        if isinstance(event, Claimed):
            assert self._phase is Phase.FIRST, "only who is first may claim, and once"
            self._phase = Phase.CLAIMING
            return [ReadTerm()] if self._is_connected else []
        if self._phase is not Phase.CLAIMING:
            return []
        match event:
            case TermSeen(term, version):
                return self._write(term, version)
            case TermWritten(version):
                return self._leads(version)
            case TermChanged():
                return [ReadTerm()]
            case TermDoubtful():
                self._is_claim_doubtful = True
                return self._resend_claim() if self._is_connected else []
            case NodeMissing():
                return self._over(Ending.FENCED, "our election node is gone: the next candidate takes over")
            case _:
                assert_never(event)

    def _resend_claim(self) -> list[Command]:
        self._is_claim_doubtful = False
        return [ReadTerm()] if self._claim is None else [self._claim]

    def _write(self, term: Term, version: int) -> list[Command]:
        claim = self._claim
        if claim is not None and term == claim.term and version == claim.version + 1:
            return self._leads(version)  # what was not answered had happened
        if self._claim_tries >= CLAIM_TRIES_MAX:
            return self._over(Ending.FENCED, f"{term.owner!r} takes the epoch again and again")
        self._claim_tries += 1
        wanted = Term(term.epoch + 1, term.level, self._owner)
        self._claim = WriteTerm(self._node, wanted, version)
        return [self._claim]

    def _leads(self, version: int) -> list[Command]:
        assert self._claim is not None
        self._phase, self._lead = Phase.LEADING, Lead(self._claim.term, version)
        return [self._lead]


def node_prefix(candidate: str) -> str:
    """Return what a candidate's election node begins with; ZooKeeper puts the sequence number behind it."""
    return f"n_{candidate}-"


def is_node_of(node: str, candidate: str) -> bool:
    return node.startswith(node_prefix(candidate))


def sort_candidates(nodes: Iterable[str]) -> list[str]:
    """Return the election nodes among `nodes` in the order of their turns.

    The sequence number has 32 bits and a sign and goes round, so "before" means: by less than half of the circle.

    >>> sort_candidates(["n_b-0000000002", "stray", "n_a-0000000010"])
    ['n_b-0000000002', 'n_a-0000000010']
    >>> sort_candidates(["n_a--2147483648", "n_b-2147483647"])
    ['n_b-2147483647', 'n_a--2147483648']
    """
    numbered = [(number, node) for node in nodes if (number := _sequence(node)) is not None]
    return [node for _, node in sorted(numbered, key=functools.cmp_to_key(_compare))]


def _sequence(node: str) -> int | None:
    match = _NODE.fullmatch(node)
    return int(match[1]) if match else None


def _compare(one: tuple[int, str], other: tuple[int, str]) -> int:
    distance = (one[0] - other[0]) % _SEQUENCE_COUNT
    if distance == 0:
        return 0
    return 1 if distance < _SEQUENCE_COUNT // 2 else -1
