r"""RecordIO, the framing of Mesos' event streams: a record is its length in decimal, a line feed, that many bytes.

Rule: records come out whole and in order whatever the pieces in which the bytes came in, in time linear in the bytes
(a master sends all offers of a large cluster in one record of many megabytes). Knows no socket and no Mesos message.

>>> reader = RecordReader()
>>> reader.feed(b'2\n{}1'), reader.feed(b'3\n{"a": "'), reader.feed(b'some"}')
([b'{}'], [], [b'{"a": "some"}'])
"""

from __future__ import annotations

import gc
import itertools
import json
import re
from collections.abc import Callable
from typing import Any

from stoker.mesos.errors import StreamBroken

# 10,000 offers are 14 MB; ten times the largest known cluster still fits.
RECORD_BYTES_MAX = 256 * 1024 * 1024
_DIGITS_MAX = len(str(RECORD_BYTES_MAX))

# Below this neither the garbage collector nor the parsing costs anything worth a thought.
_LARGE_BYTES_MIN = 256 * 1024

# Every so many large records what was frozen by them is looked at again, where that takes no longer than others may wait: 0.6
# to 1.3 µs an object (10,000 offers that are held are 190,000 objects: 110 to 250 ms, which is too long).
FREEZES_MAX = 16
FROZEN_LOOKED_AT_MAX = 150_000

_OFFERS_A_TURN = 200  # some milliseconds
_OFFERS_HEAD = re.compile(
    rb'\s*\{\s*"type"\s*:\s*"OFFERS"\s*,\s*"offers"\s*:\s*\{\s*"offers"\s*:\s*\[\s*(?=\{)'
)
_BETWEEN_OFFERS = re.compile(r"\s*,\s*(?=\{)")
_OFFERS_TAIL = re.compile(r"\s*\]\s*\}\s*\}\s*")


class RecordReader:
    """Cut a byte stream into records. One reader per stream; not for two threads at once."""

    def __init__(self, *, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        assert 0 < record_bytes_max <= RECORD_BYTES_MAX
        self._record_bytes_max = record_bytes_max
        self._buffer = bytearray()
        self._record_bytes: int | None = (
            None  # of the record at the head of the buffer, once its length is read
        )

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; return the records that are complete now, in order.

        :raises StreamBroken: the bytes are no RecordIO, or a record is above the limit; this reader is of no more use.
        """
        self._buffer += data
        records: list[bytes] = []
        start = 0
        with memoryview(self._buffer) as view:
            while True:
                if self._record_bytes is None:
                    start = self._read_length(start)
                if self._record_bytes is None or len(view) - start < self._record_bytes:
                    break
                records.append(bytes(view[start : start + self._record_bytes]))
                start += self._record_bytes
                self._record_bytes = None
        del self._buffer[:start]
        return records

    @property
    def is_between_records(self) -> bool:
        """Say whether the stream could end here without a record being cut."""
        return self._record_bytes is None and not self._buffer

    def _read_length(self, start: int) -> int:
        end = self._buffer.find(b"\n", start, start + _DIGITS_MAX + 1)
        if end < 0:
            digits = bytes(self._buffer[start : start + _DIGITS_MAX + 1])
            if len(digits) > _DIGITS_MAX or (digits and not digits.isdigit()):
                raise StreamBroken(f"no RecordIO length (a number and a line feed) at {digits!r}")
            return start
        digits = bytes(self._buffer[start:end])
        if not digits.isdigit():
            raise StreamBroken(f"no RecordIO length (a number and a line feed) at {digits!r}")
        record_bytes = int(digits)
        if record_bytes > self._record_bytes_max:
            raise StreamBroken(
                f"a record of {record_bytes} bytes is above the limit of {self._record_bytes_max}"
            )
        self._record_bytes = record_bytes
        return end + 1


def encode_record(payload: bytes) -> bytes:
    """Frame one record."""
    return b"%d\n%b" % (len(payload), payload)


def decode_event(record: bytes, *, rest: Callable[[], object] | None = None) -> dict[str, Any]:
    """Parse a record that is a JSON object, as all Mesos events are.

    The garbage collector pauses while a large record is parsed, and never looks at what comes of it: walking hundreds of
    thousands of fresh dictionaries again and again is most of the time otherwise (10,000 offers: 85 ms instead of 460, and
    as much again while they are decided). They have no cycles, so they go when nobody refers to them. What else is alive then
    is frozen with them, and if it becomes garbage in a cycle it goes with one of the next FREEZES_MAX large records; in a process
    with more than FROZEN_LOOKED_AT_MAX objects (a leader of a very large catalog, or one that holds 10,000 offers) not before
    it has fewer, or thaws everything at the end of its leadership. `rest` is called now and then within a large OFFERS event, so that a process of greenlets can do
    something else for a moment.

    :raises StreamBroken: the record is not a JSON object.
    """
    pause = len(record) >= _LARGE_BYTES_MIN and gc.isenabled()
    if pause:
        has_looked_at_all = _collect()
        gc.disable()
        if has_looked_at_all and rest:
            rest()
    try:
        event = _decode_offers(record, rest) if rest and len(record) >= _LARGE_BYTES_MIN else None
        if event is None:
            event = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise StreamBroken(f"an event is not JSON: {error}: {record[:200]!r}") from error
    finally:
        if pause:
            gc.freeze()
            gc.enable()
    if not isinstance(event, dict):
        raise StreamBroken(f"an event is not a JSON object: {record[:200]!r}")
    return event


_freezes = itertools.count(1)


def _collect() -> bool:
    """Collect what would be frozen as garbage; now and then, and then return True, also what was frozen and is garbage since."""
    if next(_freezes) % FREEZES_MAX != 0 or gc.get_freeze_count() > FROZEN_LOOKED_AT_MAX:
        gc.collect(1)
        return False
    gc.unfreeze()
    gc.collect()
    return True


def _decode_offers(record: bytes, rest: Callable[[], object]) -> dict[str, Any] | None:
    """Parse an OFFERS event offer by offer; None if it is not written as masters write it."""
    head = _OFFERS_HEAD.match(record)
    if head is None:
        return None
    text = record.decode("utf-8")
    at = head.end()  # the head is ASCII: bytes are characters
    decode = json.JSONDecoder().raw_decode
    offers: list[Any] = []
    while True:
        offer, at = decode(text, at)
        offers.append(offer)
        if len(offers) % _OFFERS_A_TURN == 0:
            rest()
        between = _BETWEEN_OFFERS.match(text, at)
        if between is None:
            break
        at = between.end()
    if _OFFERS_TAIL.fullmatch(text, at) is None:
        return None
    return {"type": "OFFERS", "offers": {"offers": offers}}
