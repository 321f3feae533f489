"""Resources as amounts: what an agent has, what an offer holds, what a task takes.

Scalars are thousandths (Mesos rounds to three digits), ranges are sorted and merged. A resource that is not plain (reserved, of
another role, a volume, revocable) gets a tag that says so, and is therefore contained in no offer of plain ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from stoker.mesos.embedded.core.codec import Message

Span: TypeAlias = tuple[int, int]
Key: TypeAlias = tuple[str, str]

_ORDER = ("ports", "cpus", "mem", "disk", "gpus")
_SPECIAL = ("reservation", "reservations", "disk", "revocable", "shared", "provider_id")


class ResourceError(Exception):
    """A resource that no task may ask for; the text is Mesos'."""


class Resources:
    """An immutable bag of resources."""

    __slots__ = ("ranges", "scalars")

    def __init__(self, scalars: Mapping[Key, int], ranges: Mapping[Key, tuple[Span, ...]]) -> None:
        self.scalars = {key: amount for key, amount in scalars.items() if amount}
        self.ranges = {key: spans for key, spans in ranges.items() if spans}

    def __add__(self, other: Resources) -> Resources:
        scalars = dict(self.scalars)
        for key, amount in other.scalars.items():
            scalars[key] = scalars.get(key, 0) + amount
        ranges = dict(self.ranges)
        for key, spans in other.ranges.items():
            ranges[key] = merge(ranges.get(key, ()) + spans)
        return Resources(scalars, ranges)

    def __sub__(self, other: Resources) -> Resources:
        """Take away `other`, which must be contained in self."""
        assert self.contains(other), (self, other)
        scalars = {key: amount - other.scalars.get(key, 0) for key, amount in self.scalars.items()}
        ranges = {key: subtract(spans, other.ranges.get(key, ())) for key, spans in self.ranges.items()}
        return Resources(scalars, ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Resources) and (self.scalars, self.ranges) == (other.scalars, other.ranges)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self.scalars or self.ranges)

    def __repr__(self) -> str:
        return f"Resources({self.describe()})"

    def contains(self, other: Resources) -> bool:
        """Whether all of `other` is in self."""
        return all(amount <= self.scalars.get(key, 0) for key, amount in other.scalars.items()) and all(
            covers(self.ranges.get(key, ()), spans) for key, spans in other.ranges.items()
        )

    def describe(self, role: str | None = None) -> str:
        """Return the text that Mesos prints in its errors."""
        return "; ".join(f"{name}{_suffix(tag, role)}:{amount}" for name, tag, amount in self._printed())

    def to_messages(self, role: str | None = None, *, with_role: bool = False) -> list[Message]:
        """Return the resources on the wire, ports first as in offers.

        `role` becomes `allocation_info`; `with_role` adds the old format's `role: "*"`.
        """
        result: list[Message] = []
        for name, _ in sorted((*self.ranges, *self.scalars), key=_position):
            spans, amount = self.ranges.get((name, "")), self.scalars.get((name, ""), 0)
            message: Message = {"name": name, "type": "RANGES" if spans else "SCALAR"}
            if spans:
                message["ranges"] = {"range": [{"begin": begin, "end": end} for begin, end in spans]}
            else:
                message["scalar"] = {"value": amount / 1000}
            if with_role:
                message["role"] = "*"
            if role is not None:
                message["allocation_info"] = {"role": role}
            result.append(message)
        return result

    def summary(self) -> Message:
        """Return the short form of /state: plain numbers, ports as text."""
        result: Message = {
            name: self.scalars.get((name, ""), 0) / 1000 for name in ("disk", "mem", "gpus", "cpus")
        }
        result.update({name: _spans_text(spans) for (name, _), spans in self.ranges.items()})
        return result

    def scalar(self, name: str) -> int:
        """Return thousandths of the plain resource `name`."""
        return self.scalars.get((name, ""), 0)

    def _printed(self) -> Iterator[tuple[str, str, str]]:
        for (name, tag), spans in self.ranges.items():
            yield name, tag, _spans_text(spans)
        for (name, tag), amount in self.scalars.items():
            yield name, tag, f"{amount / 1000:.15g}"


EMPTY = Resources({}, {})


def plain(*, cpus: float, mem_mib: int, disk_mib: int, ports: Span | None) -> Resources:
    """Return the unreserved resources of an agent."""
    scalars = {("cpus", ""): round(cpus * 1000), ("mem", ""): mem_mib * 1000, ("disk", ""): disk_mib * 1000}
    return Resources(scalars, {("ports", ""): (ports,)} if ports else {})


def from_messages(messages: Iterable[Message], role: str) -> Resources:
    """Return the amounts of a task's or executor's resources, which belong to an offer of `role`.

    :raises ResourceError: a value is not positive, or missing.
    """
    total = EMPTY
    for message in messages:
        total = total + _one(message, role)
    return total


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return `spans` sorted, overlapping and neighbouring ones joined.

    >>> merge([(5, 6), (1, 2), (3, 3)])
    ((1, 3), (5, 6))
    """
    result: list[Span] = []
    for begin, end in sorted(spans):
        if result and begin <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return tuple(result)


def subtract(spans: Iterable[Span], taken: Iterable[Span]) -> tuple[Span, ...]:
    """Return `spans` without `taken`.

    >>> subtract([(1, 10)], [(3, 4), (10, 10)])
    ((1, 2), (5, 9))
    """
    rest = list(spans)
    for low, high in taken:
        cut = [((begin, min(end, low - 1)), (max(begin, high + 1), end)) for begin, end in rest]
        rest = [piece for pieces in cut for piece in pieces if piece[0] <= piece[1]]
    return merge(rest)


def covers(spans: Iterable[Span], wanted: Iterable[Span]) -> bool:
    """Whether every number of `wanted` is in `spans` (merged)."""
    held = tuple(spans)
    return all(any(begin <= low and high <= end for begin, end in held) for low, high in wanted)


def _one(message: Message, role: str) -> Resources:
    key = (message["name"], _tag(message, role))
    text = f"{message['name']}{_suffix(key[1], role)}"
    if message["type"] == "SCALAR":
        value = message.get("scalar", {}).get("value")
        if value is None or not value > 0 or value > 1e15:
            shown = f"{text}:{value:.15g}" if value is not None else text
            raise ResourceError(f"Resource '{shown}' is invalid: Invalid scalar resource: value <= 0")
        return Resources({key: round(value * 1000)}, {})
    if message["type"] == "RANGES":
        spans = [(span["begin"], span["end"]) for span in message.get("ranges", {}).get("range", ())]
        if not spans or any(begin > end or begin < 0 for begin, end in spans):
            raise ResourceError(f"Resource '{text}:{_spans_text(spans)}' is invalid: Invalid ranges resource")
        return Resources({}, {key: merge(spans)})
    raise ResourceError(f"Resource '{text}' is invalid: the embedded Mesos has scalars and ranges only")


def _tag(message: Message, role: str) -> str:
    special = {key: message[key] for key in _SPECIAL if message.get(key)}
    if message.get("role", "*") != "*":
        special["role"] = message["role"]
    allocated = message.get("allocation_info", {}).get("role", role)
    if allocated == role and not special:
        return ""
    return f"allocated: {allocated}" + (", " + json.dumps(special, sort_keys=True) if special else "")


def _suffix(tag: str, role: str | None) -> str:
    text = tag or (f"allocated: {role}" if role is not None else "")
    return f"({text})" if text else ""


def _spans_text(spans: Iterable[Span]) -> str:
    return "[" + ", ".join(f"{begin}-{end}" for begin, end in spans) + "]"


def _position(key: Key) -> tuple[int, str]:
    return (_ORDER.index(key[0]) if key[0] in _ORDER else len(_ORDER), key[0])
