"""What the connections of a data server share: who answers here, what it grants, and what it knows."""

from __future__ import annotations

from typing import NamedTuple

from stoker.executor.loans import DatasetShelf, Shelf
from stoker.executor.misses import Misses
from stoker.executor.stream import STALL_TIMEOUT_MS
from stoker.executor.wire import ANSWER, HELLO_TIMEOUT_MS, Status

LET_GO_TIMEOUT_MS = 30_000  # of a removed dataset; a caller that is stopped for longer is not waited for


class Identity(NamedTuple):
    """Who answers here."""

    cluster: bytes
    launch_id: int
    incarnation: int


class Limits(NamedTuple):
    """What a data server grants its callers; the times are others only in tests."""

    connections_max: int = 4_096
    hello_timeout_ms: int = HELLO_TIMEOUT_MS
    stall_timeout_ms: int = STALL_TIMEOUT_MS
    let_go_timeout_ms: int = LET_GO_TIMEOUT_MS


class ServerState:
    """What all connections share. `slots` is the msgpack of the newest slot table."""

    def __init__(self, identity: Identity, limits: Limits, shelf: Shelf, misses: Misses) -> None:
        self.identity = identity
        self.limits = limits
        self.shelf = shelf
        self.misses = misses
        self.placement_version = 0
        self.slots = b"\x90"

    def header(
        self,
        dataset: DatasetShelf | None,
        op: int,
        request_id: int,
        payload_bytes: int,
        *,
        failed: int = 0,
        status: Status = Status.OK,
    ) -> bytes:
        """Return the head of an answer."""
        return ANSWER.pack(
            op,
            status,
            failed,
            request_id,
            payload_bytes,
            self.placement_version,
            0 if dataset is None else dataset.version,
        )
