"""What makes one resource another resource than its neighbour of the same name: reservations, a volume, what is special.

A `Key` is that identity; amounts belong to keys (`resources.py`). Two keys are equal where Mesos finds two resources equal: the order
of labels, a volume's container path and a persistence's principal do not matter, and the first spelling is kept for the wire.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from stoker.mesos.embedded.core.codec import Message

STATIC = "STATIC"  # given to an agent at its start: nobody takes it back
DYNAMIC = "DYNAMIC"
_SPECIAL = ("revocable", "shared", "provider_id")
NAME_BYTES_MAX = 255
PATH_PARTS_MAX = 16  # of a volume's place in a sandbox
_ORDER = ("ports", "cpus", "mem", "disk", "gpus")


class ResourceError(Exception):
    """A resource that nobody may ask for; the text is Mesos'."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """One reservation; `wire` is its message in the new format, as it was given."""

    kind: str
    role: str
    principal: str | None
    labels: tuple[tuple[str, str | None], ...]
    wire: Message = field(compare=False)

    @property
    def text(self) -> str:
        """What Mesos prints of it in its errors."""
        parts = [self.kind, self.role]
        if self.principal is not None:
            parts.append(self.principal)
        given = self.wire.get("labels", {}).get("labels")
        if given:
            parts.append("{" + ", ".join(f"{item['key']}: {item.get('value', '')}" for item in given) + "}")
        return f"({','.join(parts)})"


@dataclass(frozen=True, slots=True)
class Disk:
    """What makes a disk more than a number of bytes: a persistent volume on it, or where it comes from."""

    persistence_id: str | None
    source: str
    wire: Message = field(compare=False)

    @property
    def text(self) -> str:
        path = self.wire.get("volume", {}).get("container_path", "")
        return f"[{self.persistence_id or self.source}:{path}]"


class Key(NamedTuple):
    """The identity of a resource. `stack` is empty for what is unreserved, its last entry is the one that counts.

    `allocated` is set only where a resource claims another role than that of the offer it is asked from; it and what is
    `special` make it a resource that no offer contains.
    """

    name: str
    stack: tuple[Reservation, ...] = ()
    disk: Disk | None = None
    allocated: str = ""
    special: str = ""
    is_ranges: bool = False

    @property
    def role(self) -> str:
        """The role it is reserved for, "*" for none."""
        return self.stack[-1].role if self.stack else "*"

    @property
    def is_volume(self) -> bool:
        return self.disk is not None and self.disk.persistence_id is not None

    @property
    def position(self) -> tuple[int, str, bool]:
        """Where it stands among resources of its kind in an offer."""
        order = _ORDER.index(self.name) if self.name in _ORDER else len(_ORDER)
        return order, self.name, self.disk is not None

    def describe(self, role: str | None) -> str:
        """Return the text that Mesos prints in its errors, without the amount."""
        allocated = self.allocated or role
        text = self.name + (f"(allocated: {allocated})" if allocated is not None else "")
        if self.stack:
            text += f"(reservations: [{','.join(item.text for item in self.stack)}])"
        return text + (self.disk.text if self.disk else "") + self.special

    def message(self, role: str | None, *, old_format: bool) -> Message:
        """Return all of it that is not name and amount; `role` becomes `allocation_info`."""
        result: Message = {}
        if old_format:
            result["role"] = self.role
        if role is not None:
            result["allocation_info"] = {"role": role}
        if self.stack and not old_format:
            result["reservations"] = [item.wire for item in self.stack]
        elif self.stack and self.stack[-1].kind == DYNAMIC:
            wire = self.stack[-1].wire
            result["reservation"] = {key: wire[key] for key in ("principal", "labels") if key in wire}
        if self.disk:
            result["disk"] = self.disk.wire
        return result

    def stripped(self) -> Key:
        """Return the disk that a persistent volume lies on."""
        assert self.disk is not None
        source = self.disk.wire.get("source")
        return self._replace(
            disk=None if source is None else Disk(None, self.disk.source, {"source": source})
        )


def key_of(message: Message, role: str | None) -> Key:
    """Return the key of a resource in either format; `role` is that of the offer, None for an operator's call.

    :raises ResourceError: a reservation without a type, or in both formats at once.
    """
    allocated = message.get("allocation_info", {}).get("role", role)
    special = {name: message[name] for name in _SPECIAL if message.get(name) is not None}
    return Key(
        message["name"],
        _stack(message),
        _disk(message["disk"]) if "disk" in message else None,
        "" if allocated == role else str(allocated),
        json.dumps(special, sort_keys=True) if special else "",
        message["type"] == "RANGES",
    )


def static(role: str) -> Reservation:
    """Return the reservation that an agent's own resources may have.

    :raises ResourceError: the role has no proper name.
    """
    return _reservation({"type": STATIC, "role": role})


def role_error(role: str) -> str | None:
    """Return what is wrong with a role's name."""
    if role == "*":
        return None
    if not role:
        return "Role name cannot be empty"
    if role.startswith("/"):
        return f"Role '{role}' cannot start with a slash"
    if role.endswith("/"):
        return f"Role '{role}' cannot end with a slash"
    for part in role.split("/"):
        if not part:
            return f"Role '{role}' cannot contain two adjacent slashes"
        if part in (".", ".."):
            return f"Role '{role}' cannot include '{part}' as a component"
        if part == "*":
            return f"Role '{role}' cannot include '*' as a component"
        if part.startswith("-"):
            return f"Role component '{part}' is invalid because it begins with a dash"
        if any(character in "\b\t\n\v\f\r " for character in part):
            return f"Role component '{part}' is invalid because it contains backspace or whitespace"
    return None


def is_file_name(text: str) -> bool:
    """Whether a directory may have this name: no NUL, proper Unicode, not too long."""
    try:
        return "\0" not in text and 0 < len(text.encode()) <= NAME_BYTES_MAX
    except UnicodeEncodeError:
        return False


def is_within(role: str, ancestor: str) -> bool:
    """Whether `role` is `ancestor` or below it.

    >>> is_within("a/b", "a"), is_within("a", "a/b"), is_within("ab", "a")
    (True, False, False)
    """
    return role == ancestor or role.startswith(ancestor + "/")


def _stack(message: Message) -> tuple[Reservation, ...]:
    role = message.get("role", "*")
    if message.get("reservations"):
        if "reservation" in message or role != "*":
            raise ResourceError(
                f"Invalid resource '{message['name']}': 'reservations' and the old format ('role', 'reservation') "
                "exclude each other"
            )
        stack = tuple(_reservation(item) for item in message["reservations"])
        for lower, upper in pairwise(stack):
            if upper.kind == STATIC or upper.role == lower.role or not is_within(upper.role, lower.role):
                raise ResourceError(
                    f"Invalid refined reservation: it must be DYNAMIC, and its role '{upper.role}' below '{lower.role}'"
                )
        return stack
    if role == "*":
        if "reservation" in message:
            raise ResourceError(f"Invalid resource '{message['name']}': role \"*\" cannot be reserved")
        return ()
    if "reservation" not in message:
        return (static(role),)
    return (_reservation({**message["reservation"], "type": DYNAMIC, "role": role}),)


def _reservation(item: Message) -> Reservation:
    if item.get("type") not in (STATIC, DYNAMIC) or "role" not in item:
        raise ResourceError("Invalid reservation: 'type' (STATIC or DYNAMIC) and 'role' must be set")
    if item["role"] == "*":
        raise ResourceError('Invalid reservation: role "*" cannot be reserved')
    complaint = role_error(item["role"])
    if complaint is None and not is_file_name(item["role"].replace("/", " ")):
        complaint = f"Role {item['role']!r} cannot have a directory for its volumes"
    if complaint:
        raise ResourceError(f"Invalid reservation: {complaint}")
    labels = item.get("labels", {}).get("labels", ())
    wire: Message = {key: item[key] for key in ("type", "role", "principal", "labels") if key in item}
    pairs = sorted((label["key"], label.get("value")) for label in labels)
    return Reservation(item["type"], item["role"], item.get("principal"), tuple(pairs), wire)


def _disk(item: Message) -> Disk:
    source = item.get("source")
    text = "" if source is None else json.dumps(source, sort_keys=True)
    return Disk(item.get("persistence", {}).get("id"), text, item)
