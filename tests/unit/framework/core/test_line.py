"""The line of frames: what makes a batch, and in which order."""

from __future__ import annotations

from stoker.framework.core.events import Stamp
from stoker.framework.core.line import BATCH_RECORDS_MAX, Line
from stoker.zk.journal import BATCH_BYTES_MAX

STAMP = Stamp(1, 0, 0)
HALF = b"x" * (BATCH_BYTES_MAX // 2)


def batches(line: Line) -> list[list[int]]:
    """Take all, and return for each batch how many records each of its frames has."""
    found = []
    while batch := line.take_batch():
        found.append([len(waiting.records) for waiting in batch])
        line.appended(sum(found[-1]))
        line.done()
    return found


def line_of(*frames: tuple[bytes, ...]) -> Line:
    line = Line(10)
    for records in frames:
        line.push(STAMP, records)
    return line


def test_what_was_decided_meanwhile_is_one_batch() -> None:
    line = line_of((b"a",), (b"b", b"c"), (), (b"d",))
    assert batches(line) == [[1, 2, 0, 1]]
    assert line.next_index == line.decided_index == 14


def test_what_has_no_records_waits_for_none_behind_it() -> None:
    assert batches(line_of((), (), (b"a",), ())) == [[0, 0], [1, 0]]


def test_a_frame_is_never_split() -> None:
    assert batches(line_of((HALF,), (HALF, b"y"), (b"z",))) == [[1], [2, 1]]
    many = (b"r",) * (BATCH_RECORDS_MAX - 1)
    assert batches(line_of(many, (b"a",), (b"b",))) == [[len(many), 1], [1]]


def test_a_frame_larger_than_a_batch_goes_alone() -> None:
    """The journal refuses it then, by name; it is not held up for ever."""
    assert batches(line_of((b"a",), (HALF, HALF, HALF), (b"b",))) == [[1], [3], [1]]


def test_all_that_is_not_done_is_standing() -> None:
    line = line_of((b"a",), (HALF, HALF))
    (taken,) = line.take_batch()
    assert line.standing() == [taken, line.frames[0]] and len(line) == 1
    assert (taken.stop_index, line.frames[0].stop_index) == (11, 13)
    line.done()
    assert line.standing() == [line.frames[0]]
