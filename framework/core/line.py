"""The line of frames between deciding and acting.

What is decided changes the state at once; its frame stands in line until its records, and all before them, are durable.
One batch of records is in flight; what was decided meanwhile is the next one. A frame is never split. Frames without
records, and reads, wait only for what stands before them.

    push -> line -> take_batch -> (append) -> appended -> act, answer -> done
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

from stoker.framework.core.actions import Action
from stoker.framework.core.events import Stamp
from stoker.zk.journal import BATCH_BYTES_MAX

BATCH_RECORDS_MAX = 2_000


@dataclass(slots=True)
class Waiting:
    """A frame, or a read, in line. `stop_index`: after its records; `told`: what the shell is to set or call in the end."""

    stamp: Stamp
    stop_index: int
    records: tuple[bytes, ...] = ()
    actions: tuple[Action, ...] = ()
    reply_id: int = 0
    told: Any = None


class Line:
    """See the module. `next_index` is that of the record that is appended next, `decided_index` follows the last in line."""

    def __init__(self, next_index: int) -> None:
        self.next_index = self.decided_index = next_index
        self.frames: collections.deque[Waiting] = collections.deque()
        self.in_flight: list[Waiting] = []

    def __len__(self) -> int:
        return len(self.frames)

    def push(
        self,
        stamp: Stamp,
        records: tuple[bytes, ...] = (),
        actions: tuple[Action, ...] = (),
        reply_id: int = 0,
        told: Any = None,
    ) -> Waiting:
        """Put a frame, or a read, behind all that is decided."""
        self.decided_index += len(records)
        waiting = Waiting(stamp, self.decided_index, records, actions, reply_id, told)
        self.frames.append(waiting)
        return waiting

    def take_batch(self) -> list[Waiting]:
        """Return the next frames, whole, that fit a batch; those before the first with records come alone."""
        assert not self.in_flight, "one batch at a time"
        batch: list[Waiting] = []
        count = size = 0
        while self.frames:
            head = self.frames[0]
            if head.records and batch and not count:
                break
            bytes_more = sum(map(len, head.records))
            if count and (
                size + bytes_more > BATCH_BYTES_MAX or count + len(head.records) > BATCH_RECORDS_MAX
            ):
                break
            count, size = count + len(head.records), size + bytes_more
            batch.append(self.frames.popleft())
        self.in_flight = batch
        return batch

    def appended(self, count: int) -> None:
        """The batch's records are durable."""
        self.next_index += count

    def done(self) -> None:
        """What waited for the batch was done."""
        self.in_flight = []

    def standing(self) -> list[Waiting]:
        """Return all that is not done, in order."""
        return [*self.in_flight, *self.frames]
