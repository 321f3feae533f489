"""Resources as amounts: what an agent has, what an offer holds, what a task takes.

Scalars are thousandths (Mesos rounds to three digits), ranges are sorted and merged. What a resource is besides its amount stands
in its key; a persistent volume is taken whole or not at all, what is special is contained in no offer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.reservations import (
    Key,
    ResourceError,
    is_within,
    key_of,
    static,
)

Span: TypeAlias = tuple[int, int]
Amount: TypeAlias = int | tuple[Span, ...]
Quantities: TypeAlias = dict[str, int]

RANGES_MAX = 10_000  # in one resource: a limit against nonsense, an agent's ports are a few dozen
_SCALAR_MAX = 1e15
_TEXT = re.compile(r"(?P<name>[\w.-]+)(?:\((?P<role>[^)]+)\))?:(?P<value>\[.*\]|[^\[\]{}]+)")


class Resources:
    """An immutable bag of resources; the order in which they came is kept for texts."""

    __slots__ = ("items",)

    def __init__(self, items: Mapping[Key, Amount]) -> None:
        self.items = {key: amount for key, amount in items.items() if amount}

    def __add__(self, other: Resources) -> Resources:
        if not other.items:
            return self
        items: dict[Key, Amount] = dict(self.items)
        for key, amount in other.items.items():
            held = items.get(key)
            items[key] = amount if held is None else _plus(held, amount)
        return Resources(items)

    def __sub__(self, other: Resources) -> Resources:
        """Take away `other`, which must be contained in self."""
        assert self.contains(other), (self, other)
        items: dict[Key, Amount] = dict(self.items)
        for key, amount in other.items.items():
            held = items[key]
            if isinstance(held, int):
                assert isinstance(amount, int)
                items[key] = held - amount
            else:
                assert not isinstance(amount, int)
                items[key] = subtract(held, amount)
        return Resources(items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Resources) and self.items == other.items

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self.items)

    def __repr__(self) -> str:
        return f"Resources({self.describe()})"

    def contains(self, other: Resources) -> bool:
        """Whether all of `other` is in self."""
        for key, amount in other.items.items():
            held = self.items.get(key)
            if held is None:
                return False
            if isinstance(held, int) and isinstance(amount, int):
                if amount > held or (amount < held and key.is_volume):
                    return False
            elif not (isinstance(held, tuple) and isinstance(amount, tuple) and covers(held, amount)):
                return False
        return True

    def common(self, other: Resources) -> Resources:
        """Return what is in both."""
        items: dict[Key, Amount] = {}
        for key, amount in other.items.items():
            held = self.items.get(key)
            if isinstance(held, int) and isinstance(amount, int):
                items[key] = min(held, amount) if not key.is_volume or held == amount else 0
            elif held is not None and not isinstance(held, int) and not isinstance(amount, int):
                items[key] = subtract(held, subtract(held, amount))
        return Resources(items)

    def spelled_as(self, offered: Resources) -> Resources:
        """Return self, which `offered` contains, with the keys of `offered`: a volume keeps the path it was created with."""
        spelling = {key: key for key in offered.items}
        return Resources({spelling[key]: amount for key, amount in self.items.items()})

    def select(self, wanted: Callable[[Key], bool]) -> Resources:
        """Return the part whose keys are `wanted`."""
        return Resources({key: amount for key, amount in self.items.items() if wanted(key)})

    def for_role(self, role: str) -> Resources:
        """Return what may be offered to `role`: what is unreserved, or reserved for it or for a role above it."""
        if not self.has_reserved:
            return self
        return self.select(lambda key: not key.stack or is_within(role, key.role))

    @property
    def has_reserved(self) -> bool:
        return any(key.stack for key in self.items)

    def unreserved(self) -> Resources:
        return self.select(lambda key: not key.stack) if self.has_reserved else self

    def volumes(self) -> Resources:
        """Return the persistent volumes."""
        return self.select(lambda key: key.is_volume)

    def quantities(self) -> Quantities:
        """Return thousandths by name, whatever the keys; scalars only."""
        result: Quantities = {}
        for key, amount in self.items.items():
            if isinstance(amount, int):
                result[key.name] = result.get(key.name, 0) + amount
        return result

    def chopped(self, limits: Mapping[str, int]) -> Resources:
        """Return self with no more of each scalar than `limits` says; what it does not name stays whole.

        Only for what is unreserved: a reserved resource or a volume is not chopped.
        """
        left = dict(limits)
        items: dict[Key, Amount] = {}
        for key, amount in self.items.items():
            if isinstance(amount, int) and key.name in left and not key.stack:
                amount = max(0, min(amount, left[key.name]))
                left[key.name] -= amount
            items[key] = amount
        return Resources(items)

    def describe(self, role: str | None = None) -> str:
        """Return the text that Mesos prints in its errors, in the order in which the resources came."""
        return "; ".join(f"{key.describe(role)}:{amount_text(amount)}" for key, amount in self.items.items())

    def in_order(self) -> Resources:
        """Return self as an offer lists it: ranges, then what is reserved, then the rest."""
        return Resources(dict(sorted(self.items.items(), key=_position)))

    def to_messages(self, role: str | None = None, *, with_role: bool = False) -> list[Message]:
        """Return the resources on the wire, in the order of an offer.

        `role` becomes `allocation_info`; `with_role` is the format of before RESERVATION_REFINEMENT (`role`, `reservation`).
        """
        result: list[Message] = []
        for key, amount in sorted(self.items.items(), key=_position):
            if isinstance(amount, int):
                message: Message = {
                    "name": key.name,
                    "type": "SCALAR",
                    "scalar": {"value": amount / 1000},
                }
            else:
                spans = [{"begin": begin, "end": end} for begin, end in amount]
                message = {"name": key.name, "type": "RANGES", "ranges": {"range": spans}}
            message.update(key.message(role, old_format=with_role))
            result.append(message)
        return result

    def summary(self) -> Message:
        """Return the short form of /state: plain numbers, ports as text."""
        quantities = self.quantities()
        result: Message = {name: quantities.get(name, 0) / 1000 for name in ("disk", "mem", "gpus", "cpus")}
        spans: dict[str, tuple[Span, ...]] = {}
        for key, amount in self.items.items():
            if not isinstance(amount, int):
                spans[key.name] = merge(spans.get(key.name, ()) + amount)
        result.update({name: amount_text(value) for name, value in spans.items()})
        return result

    def scalar(self, name: str) -> int:
        """Return thousandths of the unreserved resource `name`."""
        amount = self.items.get(Key(name), 0)
        assert isinstance(amount, int)
        return amount


EMPTY = Resources({})


def plain(*, cpus: float, mem_mib: int, disk_mib: int, ports: Span | None) -> Resources:
    """Return the unreserved resources of an agent."""
    items: dict[Key, Amount] = {Key("ports", is_ranges=True): (ports,)} if ports else {}
    items[Key("cpus")] = round(cpus * 1000)
    items[Key("mem")] = mem_mib * 1000
    items[Key("disk")] = disk_mib * 1000
    return Resources(items)


def from_messages(messages: Iterable[Message], role: str | None) -> Resources:
    """Return the amounts of a task's, executor's or operation's resources; `role` is that of the offer, None for no offer.

    :raises ResourceError: a value is not positive, or missing; a reservation is malformed.
    """
    items: dict[Key, Amount] = {}
    for message in messages:
        key, amount = _one(message, role)
        held = items.get(key)
        if held is not None and key.is_volume:
            key = key._replace(special="<TWICE>")  # a volume is one thing: no offer has it twice
            held = items.get(key)
        items[key] = amount if held is None else _plus(held, amount)
    return Resources(items)


def parse_resources(text: str) -> Resources:
    """Return the resources of an agent's `text`, such as cpus:4;mem:4096;disk(cache):100;ports:[31000-31099].

    A name in parentheses is a role that the resource is reserved for, for ever.

    :raises ResourceError: what is wrong, and where.
    """
    total = EMPTY
    for part in filter(None, (item.strip() for item in text.split(";"))):
        match = _TEXT.fullmatch(part)
        if not match:
            raise ResourceError(f"resource {part!r} must be NAME:VALUE or NAME(ROLE):VALUE")
        stack = () if match["role"] in (None, "*") else (static(match["role"]),)
        amount = _value(part, match["value"].strip())
        key = Key(match["name"], stack, is_ranges=not isinstance(amount, int))
        total = total + Resources({key: amount})
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


def amount_text(amount: Amount) -> str:
    """Return an amount as Mesos prints it."""
    if isinstance(amount, int):
        return f"{amount / 1000:.15g}"
    return "[" + ", ".join(f"{begin}-{end}" for begin, end in amount) + "]"


def _one(message: Message, role: str | None) -> tuple[Key, Amount]:
    key = key_of(message, role)
    text = key.describe(role)
    if message["type"] == "SCALAR":
        value = message.get("scalar", {}).get("value")
        if value is None or not value > 0 or value > _SCALAR_MAX:
            shown = f"{text}:{value:.15g}" if value is not None else text
            raise ResourceError(f"Resource '{shown}' is invalid: Invalid scalar resource: value <= 0")
        return key, round(value * 1000)
    if message["type"] == "RANGES":
        spans = tuple((span["begin"], span["end"]) for span in message.get("ranges", {}).get("range", ()))
        if not 0 < len(spans) <= RANGES_MAX or any(begin > end or begin < 0 for begin, end in spans):
            raise ResourceError(f"Resource '{text}:{amount_text(spans)}' is invalid: Invalid ranges resource")
        return key, merge(spans)
    raise ResourceError(f"Resource '{text}' is invalid: the embedded Mesos has scalars and ranges only")


def _value(part: str, text: str) -> Amount:
    if text.startswith("["):
        found = re.fullmatch(r"\[\s*(\d+-\d+(?:\s*,\s*\d+-\d+)*)\s*\]", text)
        if not found:
            raise ResourceError(f"resource {part!r} has no ranges such as [31000-31099, 32000-32009]")
        spans = [tuple(map(int, item.split("-"))) for item in found[1].split(",")]
        if any(begin > end for begin, end in spans):
            raise ResourceError(f"resource {part!r} has a range that ends before it begins")
        return merge((begin, end) for begin, end in spans)
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 0 <= float(text) <= _SCALAR_MAX:
        raise ResourceError(f"resource {part!r} has no number, and no ranges in brackets, as its value")
    return round(float(text) * 1000)


def _plus(held: Amount, amount: Amount) -> Amount:
    if isinstance(held, int):
        assert isinstance(amount, int)
        return held + amount
    assert isinstance(amount, tuple)
    return merge(held + amount)


def _position(item: tuple[Key, Amount]) -> tuple[bool, bool, tuple[int, str, bool]]:
    key, amount = item
    return isinstance(amount, int), not key.stack, key.position
