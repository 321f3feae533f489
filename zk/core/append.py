"""The window of appends: one batch in flight, and what each answer to it means. Pure: events in, commands out.

Theory of operation. A batch is one multi: check that the term's znode is of our fence's version, create the znode of the
batch, named by its first index. So a batch is there wholly or not at all, never twice, and never after a newer leader
took the epoch. One batch is in flight at a time, which makes the indexes gapless.

    IDLE --Submitted--> SENT --Created--> IDLE (acknowledged)
                        SENT --AnswerLost--> DOUBTFUL --Reconnected--> SENT (the very same multi again)
                        SENT --NodeExists--> READING --NodeRead--> IDLE (our bytes), or OVER (somebody else's)
                        any of them --the fence, the session's end, any other error--> OVER

After a lost answer the batch may be there or not. Sending it again in the same session settles that: either it is made
now, or the node is there already, and then its bytes say whose it is. (A plain read could be answered by a server that
is behind.) After the session nothing can be settled any more, and the leadership ends in doubt. So it does after
SENDINGS_MAX sendings without an answer: a server whose limit a batch exceeds ends the connection, and says nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import assert_never

from stoker.zk.core.leadership import Ending

SENDINGS_MAX = 5  # of one request; only those count that went out on a connection


def never_answered(what: str) -> str:
    """Return why `what` is given up after SENDINGS_MAX sendings."""
    return (
        f"{what} was sent {SENDINGS_MAX} times, and the connection broke each time before an answer: "
        "jute.maxbuffer of the ZooKeeper servers may be too small (1 MiB is needed, and is the default)"
    )


class AppendPhase(enum.Enum):
    IDLE = "idle"
    SENT = "sent"
    DOUBTFUL = "doubtful"
    READING = "reading"
    OVER = "over"


# What happened.


@dataclass(frozen=True, slots=True)
class Submitted:
    """The caller wants these records durable. `data` is the batch's frame, which carries epoch and index."""

    first_index: int
    record_count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Created:
    """The multi was done."""


@dataclass(frozen=True, slots=True)
class NodeExists:
    """The multi was refused: there is a batch at this index already."""


@dataclass(frozen=True, slots=True)
class BadVersion:
    """The multi was refused by the fence: the term is not ours any more."""


@dataclass(frozen=True, slots=True)
class NoNode:
    """The multi was refused: the term, or the log, is not there."""


@dataclass(frozen=True, slots=True)
class AnswerLost:
    """The connection broke before an answer: it may have happened. `was_sent`: there was a connection at all."""

    was_sent: bool = True


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The same session is connected again."""


@dataclass(frozen=True, slots=True)
class NodeRead:
    """What the znode at the batch's index holds; None: there is none."""

    data: bytes | None


@dataclass(frozen=True, slots=True)
class SessionOver:
    """The session, or this leadership's time, is over."""

    ending: Ending
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The multi was refused for any other reason, and surely did not happen."""

    reason: str


AppendEvent = (
    Submitted
    | Created
    | NodeExists
    | BadVersion
    | NoNode
    | AnswerLost
    | Reconnected
    | NodeRead
    | SessionOver
    | Refused
)


# What to do.


@dataclass(frozen=True, slots=True)
class Send:
    """In one multi: check the fence, create the batch's znode. Tell how that went."""

    first_index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AwaitConnection:
    """Wait for the connection, then tell Reconnected or SessionOver."""


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Read the znode at this index in the same session, then tell NodeRead; AnswerLost if that was not answered."""

    first_index: int


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The records [first_index, next_index) are durable."""

    first_index: int
    next_index: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The leadership is over. `is_doubtful`: the batch in flight may be durable or not."""

    ending: Ending
    reason: str
    is_doubtful: bool


AppendCommand = Send | AwaitConnection | ReadBack | Acknowledge | GiveUp


class AppendWindow:
    """See the module. Each call of `observe` returns at most one command, whose outcome is the next event."""

    def __init__(self, next_index: int) -> None:
        self._next_index = next_index
        self._phase = AppendPhase.IDLE
        self._batch: Submitted | None = None
        self._is_doubtful = False  # of the batch in flight: one sending of it at least was not answered
        self._lost_count = 0  # of the batch in flight: sendings without an answer
        self._end: GiveUp | None = None

    @property
    def phase(self) -> AppendPhase:
        return self._phase

    @property
    def next_index(self) -> int:
        """Index of the first record that is not acknowledged."""
        return self._next_index

    @property
    def end(self) -> GiveUp | None:
        return self._end

    def observe(self, event: AppendEvent) -> list[AppendCommand]:
        """Take in what happened and return what to do."""
        if self._phase is AppendPhase.OVER:
            return []
        match event:
            case Submitted():
                return self._submitted(event)
            case SessionOver(ending, reason):
                return self._give_up(ending, reason)
            case Refused(reason):
                return self._give_up(Ending.UNAVAILABLE, reason, is_settled=True)
        batch = self._batch
        assert batch is not None, f"{event} without a batch in flight"
        match event:
            case Created():
                return self._acknowledge(batch)
            case NodeExists():
                self._phase = AppendPhase.READING
                return [ReadBack(batch.first_index)]
            case NodeRead(data):
                return self._compare(batch, data)
            case BadVersion():
                return self._give_up(Ending.FENCED, "another leader has taken the epoch")
            case NoNode():
                return self._give_up(Ending.FENCED, "the journal's epoch or log was taken away")
            case AnswerLost(was_sent):
                return self._lost(batch, was_sent=was_sent)
            case Reconnected():
                self._phase = AppendPhase.SENT
                return [Send(batch.first_index, batch.data)]
            case _:
                assert_never(event)

    def _submitted(self, batch: Submitted) -> list[AppendCommand]:
        assert self._phase is AppendPhase.IDLE, "one batch at a time"
        assert batch.first_index == self._next_index, f"record {self._next_index} comes next"
        assert batch.record_count > 0
        self._phase, self._batch, self._is_doubtful = AppendPhase.SENT, batch, False
        self._lost_count = 0
        return [Send(batch.first_index, batch.data)]

    def _lost(self, batch: Submitted, *, was_sent: bool) -> list[AppendCommand]:
        self._phase, self._is_doubtful = AppendPhase.DOUBTFUL, True
        self._lost_count += was_sent
        if self._lost_count < SENDINGS_MAX:
            return [AwaitConnection()]
        what = f"the batch at index {batch.first_index}, of {len(batch.data)} bytes,"
        return self._give_up(Ending.UNAVAILABLE, never_answered(what))

    def _acknowledge(self, batch: Submitted) -> list[AppendCommand]:
        self._next_index += batch.record_count
        self._phase, self._batch, self._is_doubtful = AppendPhase.IDLE, None, False
        return [Acknowledge(batch.first_index, self._next_index)]

    def _compare(self, batch: Submitted, data: bytes | None) -> list[AppendCommand]:
        if data == batch.data:
            return self._acknowledge(batch)
        if data is None:
            return self._give_up(Ending.FENCED, f"the batch at index {batch.first_index} came and went")
        self._is_doubtful = False  # of one index there is one batch only, and it is not ours
        return self._give_up(Ending.FENCED, f"somebody else wrote the batch at index {batch.first_index}")

    def _give_up(self, ending: Ending, reason: str, *, is_settled: bool = False) -> list[AppendCommand]:
        """`is_settled`: of the newest sending it is known that it did not happen; of earlier ones it may not be."""
        is_settled |= self._phase is AppendPhase.IDLE or ending is Ending.FENCED
        is_doubtful = self._is_doubtful or not is_settled
        self._phase = AppendPhase.OVER
        self._end = GiveUp(ending, reason, is_doubtful)
        return [self._end]
