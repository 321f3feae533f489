"""What every under store is: values, errors and the two things it can do, list and read.

The rule: an under store is only read. Nothing here or in the stores below writes, renames or deletes there.

A file's *token* is its fingerprint as the store gives it (an ETag where there is one). `list` returns it, `read` proves
that the bytes belong to it: a file that changed since it was listed is a CHANGED failure, never bytes. A store that has
no mark to give gives an empty token and mtime_ns 0: a refresh then takes the file for changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from stoker.executor.errors import ExecutorError
from stoker.executor.manifest_format import FileRow
from stoker.executor.wire import FAILURE_MESSAGE_BYTES_MAX, Failure

PIECE_BYTES_MAX = 4 * 1024 * 1024  # one read; what `read` holds of one piece
READING_BYTES_MAX = 16 * 1024 * 1024  # of one reading: under way or waiting to be taken
TOKEN_BYTES_MAX = 256

Warn = Callable[[str], None]


class UnderStoreError(ExecutorError):
    """The under store cannot be listed or opened; the text is one line that says what to do. The operator must act."""


class Piece(NamedTuple):
    """Bytes [start, stop) of a file that is known by (size, mtime_ns, token); 0 < stop - start <= PIECE_BYTES_MAX."""

    path: str
    start: int
    stop: int
    size: int
    mtime_ns: int
    token: bytes


class ReadFailure(NamedTuple):
    """Why a piece was not read: CHANGED or UNDER_STORE, and one line without secrets."""

    code: Failure
    message: str


Outcome = bytes | bytearray | memoryview | ReadFailure


class Reading(Protocol):
    """A read under way: yields (position in `pieces`, bytes or failure), each piece once, in any order.

    A memoryview is valid until the next step. `cancel` may be called from any thread and ends the iteration soon.
    """

    is_immediate: bool  # each step reads in the caller's thread; else steps wait for what others bring

    def __iter__(self) -> Iterator[tuple[int, Outcome]]: ...

    def __next__(self) -> tuple[int, Outcome]: ...

    def wait(self, timeout_ms: float) -> bool:
        """Wait at most so long for a step that would not wait (or the end); return whether there is one."""
        ...

    def cancel(self) -> None: ...

    def hurry(self, numbers: Sequence[int]) -> None:
        """A reader waits for these pieces now: they go first, where an order can still be chosen. From any thread."""
        ...


class UnderStore(Protocol):
    """One source, opened for reading. Safe to use from several threads."""

    def list(self, warn: Warn) -> Iterator[FileRow]:
        """Yield the files under the source, in any order, each with a path relative to it; `warn` gets skipped things.

        :raises UnderStoreError: unreadable, or not what it should be.
        """
        ...

    def read(
        self, pieces: Sequence[Piece], *, urgent: bool = False, held_bytes_max: int = READING_BYTES_MAX
    ) -> Reading:
        """Return the reading of `pieces`: concurrent inside, bounded in requests.

        `urgent`: a reader waits for it; it goes before readings that are not. `held_bytes_max`: of pieces that are asked for
        and not yet taken; at least one piece always is.
        """
        ...


def one_line(text: object) -> str:
    """Return `text` as one line of at most FAILURE_MESSAGE_BYTES_MAX bytes."""
    line = " ".join(str(text).split())
    data = line.encode(errors="replace")
    if len(data) <= FAILURE_MESSAGE_BYTES_MAX:
        return line
    return data[: FAILURE_MESSAGE_BYTES_MAX - 3].decode(errors="ignore") + "..."


def changed(piece: Piece, what: str) -> ReadFailure:
    """Return the CHANGED failure of `piece`; `what` completes "PATH ..."."""
    return ReadFailure(
        Failure.CHANGED,
        one_line(f"{piece.path} {what} since this dataset version was listed; refresh the dataset to get it"),
    )


def unreadable(piece: Piece, why: str) -> ReadFailure:
    """Return the UNDER_STORE failure of `piece`."""
    return ReadFailure(Failure.UNDER_STORE, one_line(f"cannot read {piece.path} from the under store: {why}"))


def check_pieces(pieces: Sequence[Piece]) -> None:
    """Assert what `read` asks of its caller."""
    for piece in pieces:
        assert 0 <= piece.start < piece.stop <= piece.size, piece
        assert piece.stop - piece.start <= PIECE_BYTES_MAX, piece
