"""RESERVE, UNRESERVE, CREATE, DESTROY, GROW_VOLUME, SHRINK_VOLUME: what an operation makes of resources, or why it is refused.

Pure questions: a conversion says what is consumed and what comes of it, in the same amount; master and agent then do it to their
books. The texts are those of a real master; those of `OperationError`s with `at_agent` go on with the agent's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.reservations import DYNAMIC, Key, ResourceError, key_of
from stoker.mesos.embedded.core.resources import EMPTY, Resources, from_messages
from stoker.mesos.embedded.core.validation import disk_error

KINDS = frozenset({"RESERVE", "UNRESERVE", "CREATE", "DESTROY", "GROW_VOLUME", "SHRINK_VOLUME"})
SPECULATIVE = frozenset(
    {"RESERVE", "UNRESERVE", "CREATE", "DESTROY"}
)  # later operations may use what they make


class OperationError(Exception):
    """An operation that is refused; `at_agent` says whether Mesos names the agent after the text."""

    def __init__(self, text: str, *, at_agent: bool = True) -> None:
        super().__init__(text)
        self.at_agent = at_agent


class Requester(NamedTuple):
    """Who asks: a framework, or an operator (no `roles`: resources are not allocated, anything may be reserved)."""

    principal: str | None = None
    roles: tuple[str, ...] | None = None


class Place(NamedTuple):
    """Where an operation happens: what is offered there to `role` (None: an operator takes what is free), and what is there."""

    role: str | None
    available: Resources
    total: Resources
    in_use: Callable[[], Resources]


class Conversion(NamedTuple):
    """`consumed` becomes `converted`."""

    consumed: Resources
    converted: Resources

    @property
    def made(self) -> Resources:
        """Volumes that there were none of before."""
        before = {key for key in self.consumed.items if key.is_volume}
        return self.converted.select(lambda key: key.is_volume and key not in before)

    @property
    def removed(self) -> Resources:
        """Volumes that there are none of afterwards."""
        return Conversion(self.converted, self.consumed).made


def convert(operation: Message, requester: Requester, place: Place) -> Conversion:
    """Return what `operation` does.

    :raises OperationError: it cannot be done.
    """
    kind = operation["type"]
    body = operation.get(kind.lower())
    if body is None:
        raise OperationError(f"Expecting '{kind.lower()}' to be present", at_agent=False)
    conversion = _CONVERT[kind](body, requester, place)
    if not place.available.contains(conversion.consumed):
        available = place.available.in_order().describe(place.role)
        missing = _missing(place.available, conversion.consumed)
        raise OperationError(f"{available} does not contain {missing.describe(place.role)}", at_agent=False)
    consumed = conversion.consumed.spelled_as(place.available)
    return conversion._replace(consumed=consumed)


def checkpoint(resources: Resources) -> list[Message]:
    """Return what an agent must not forget of its resources: dynamic reservations and volumes."""
    return resources.select(_is_checkpointed).to_messages()


def restore(given: Resources, kept: Iterable[Message]) -> Resources:
    """Return the resources of an agent that is `given` these at its start and has `kept` a checkpoint.

    :raises ResourceError: the agent has less than was reserved on it.
    """
    total = given
    for message in kept:
        target = from_messages([message], None)
        (key,) = target.items
        source = Resources({_pristine(key): amount for amount in target.items.values()})
        if not total.contains(source):
            text = f"The agent's resources {given.describe()} do not contain what is reserved on it:"
            raise ResourceError(f"{text} {target.describe()}")
        total = total - source + target
    return total


def _reserve(body: Message, requester: Requester, place: Place) -> Conversion:
    messages = body.get("resources", [])
    target = _valid(messages, place)
    source = _valid(body["source"], place) if body.get("source") else None
    if source is not None:
        _check_mixed("source", body["source"])
        _check_mixed("resources", messages)
        _check_amounts(source, target)
    for message, key in _keys(messages, place):
        if not key.stack or key.stack[-1].kind != DYNAMIC:
            raise OperationError(f"Resource {_text(message, place)} is not dynamically reserved")
        _check_principal(requester.principal, key.stack[-1].principal)
        _check_role(message, key, requester, place)
    if source is not None:
        return Conversion(source, target)
    return Conversion(_rekeyed(target, lambda key: key._replace(stack=key.stack[:-1])), target)


def _unreserve(body: Message, requester: Requester, place: Place) -> Conversion:
    messages = body.get("resources", [])
    consumed = _valid(messages, place)
    for message, key in _keys(messages, place):
        if not key.stack or key.stack[-1].kind != DYNAMIC:
            raise OperationError(f"Resource {_text(message, place)} is not dynamically reserved")
        if key.is_volume:
            raise OperationError(
                f"A dynamically reserved persistent volume {_text(message, place)} cannot be unreserved directly. "
                "Please destroy the persistent volume first then unreserve the resource"
            )
    return Conversion(consumed, _rekeyed(consumed, lambda key: key._replace(stack=key.stack[:-1])))


def _create(body: Message, requester: Requester, place: Place) -> Conversion:
    messages = body.get("volumes", [])
    target = _valid(messages, place)
    _check_volumes(target, place)
    taken = {(key.role, key.disk.persistence_id) for key in place.total.items if key.disk}
    for message, key in _keys(messages, place):
        assert key.disk is not None
        if (key.role, key.disk.persistence_id) in taken:
            raise OperationError(f"Persistence ID '{key.disk.persistence_id}' is not unique")
        taken.add((key.role, key.disk.persistence_id))
        if "shared" in message:
            raise OperationError(
                f"Create volume operation for '{_text(message, place)}': the embedded Mesos has no shared volumes"
            )
        _check_persistence_principal(requester.principal, message["disk"]["persistence"].get("principal"))
    return Conversion(_rekeyed(target, Key.stripped), target)


def _destroy(body: Message, requester: Requester, place: Place) -> Conversion:
    volumes = _valid(body.get("volumes", []), place)
    _check_volumes(volumes, place)
    if not place.total.contains(volumes):
        raise OperationError("Persistent volumes not found")
    if place.in_use().common(volumes):
        raise OperationError("Persistent volumes in use")
    return Conversion(volumes, _rekeyed(volumes, Key.stripped))


def _grow_volume(body: Message, requester: Requester, place: Place) -> Conversion:
    volume = _sized(body["volume"], place, "GrowVolume.volume")
    addition = _sized(body["addition"], place, "GrowVolume.addition")
    _check_volumes(volume, place, "Invalid persistent volume in the 'GrowVolume.volume' field: ")
    ((key, size),) = volume.items.items()
    ((other, more),) = addition.items.items()
    if key.stripped() != other:
        raise OperationError(
            "Incompatible resources in the 'GrowVolume.volume' and 'GrowVolume.addition' fields"
        )
    assert isinstance(size, int) and isinstance(more, int)
    return Conversion(volume + addition, Resources({key: size + more}))


def _shrink_volume(body: Message, requester: Requester, place: Place) -> Conversion:
    volume = _sized(body["volume"], place, "ShrinkVolume.volume")
    ((key, size),) = volume.items.items()
    assert isinstance(size, int)
    given = body["subtract"]["value"]
    if not given >= 0.001:
        raise OperationError("Value of 'ShrinkVolume.subtract' must be greater than zero")
    less = round(min(given * 1000, size))
    if size <= less:
        raise OperationError(
            "Value of 'ShrinkVolume.subtract' must be smaller than the size of 'ShrinkVolume.volume'"
        )
    source = body["volume"].get("disk", {}).get("source")
    if isinstance(source, dict) and source.get("type") == "MOUNT":
        raise OperationError("Shrinking a volume on a MOUNT disk is not supported")
    _check_volumes(volume, place, "Invalid persistent volume in the 'ShrinkVolume.volume' field: ")
    return Conversion(volume, Resources({key: size - less, key.stripped(): less}))


_CONVERT: dict[str, Callable[[Message, Requester, Place], Conversion]] = {
    "RESERVE": _reserve,
    "UNRESERVE": _unreserve,
    "CREATE": _create,
    "DESTROY": _destroy,
    "GROW_VOLUME": _grow_volume,
    "SHRINK_VOLUME": _shrink_volume,
}


def _valid(messages: list[Message], place: Place) -> Resources:
    try:
        resources = from_messages(messages, place.role)
    except ResourceError as error:
        raise OperationError(f"Invalid resources: {error}") from error
    complaint = disk_error(messages)
    if complaint:
        raise OperationError(f"Invalid resources: {complaint}")
    return resources


def _sized(message: Message, place: Place, field: str) -> Resources:
    try:
        resources = from_messages([message], place.role)
    except ResourceError as error:
        raise OperationError(f"Invalid resource in the '{field}' field: {error}") from error
    if not resources.quantities():
        raise OperationError(f"Invalid resource in the '{field}' field: it is not a scalar of 0.001 or more")
    return resources


def _keys(messages: Iterable[Message], place: Place) -> list[tuple[Message, Key]]:
    return [(message, key_of(message, place.role)) for message in messages]


def _text(message: Message, place: Place) -> str:
    return from_messages([message], place.role).describe(place.role)


def _rekeyed(resources: Resources, change: Callable[[Key], Key]) -> Resources:
    total = EMPTY
    for key, amount in resources.items.items():
        total = total + Resources({change(key): amount})
    return total


def _missing(available: Resources, wanted: Resources) -> Resources:
    """Return the first of `wanted` that is not there: Mesos takes them one by one."""
    for key, amount in wanted.items.items():
        part = Resources({key: amount})
        if not available.contains(part):
            return part
    return wanted


def _check_mixed(field: str, messages: list[Message]) -> None:
    stacks = [message.get("reservations", []) for message in messages]
    if any(stack != stacks[0] for stack in stacks):
        raise OperationError(f"Invalid {field}: Mixed reservations are not supported")


def _check_amounts(source: Resources, target: Resources) -> None:
    one, other = (
        _rekeyed(resources, lambda key: key._replace(stack=(), allocated=""))
        for resources in (source, target)
    )
    if one != other:
        raise OperationError(
            "Source and target resources should refer to identical resource quantities: "
            f"{one.describe()} vs. {other.describe()}"
        )


def _check_principal(wanted: str | None, given: str | None) -> None:
    if wanted is None:
        return
    if given is None:
        raise OperationError(
            f"A reserve operation was attempted by principal '{wanted}', but there is a reserved resource in the "
            "request with no principal set"
        )
    if given != wanted:
        raise OperationError(
            f"A reserve operation was attempted by authenticated principal '{wanted}', which does not match a "
            f"reserved resource in the request with principal '{given}'"
        )


def _check_persistence_principal(wanted: str | None, given: str | None) -> None:
    if wanted is None:
        return
    if given is None:
        raise OperationError(
            f"Create volume operation attempted by principal '{wanted}', but there is a volume in the operation "
            "with no principal set in 'disk.persistence'"
        )
    if given != wanted:
        raise OperationError(
            f"Create volume operation attempted by authenticated principal '{wanted}', which does not match a "
            f"volume in the operation with principal '{given}' set in 'disk.persistence'"
        )


def _check_role(message: Message, key: Key, requester: Requester, place: Place) -> None:
    if requester.roles is None:
        if message.get("allocation_info"):
            raise OperationError(
                "A reserve operation was attempted with an allocated resource, but the operator API only allows "
                "reservations to be made to unallocated resources"
            )
        return
    allocated = key.allocated or place.role
    if allocated != key.role:
        raise OperationError(
            f"A reserve operation was attempted for a resource with role '{key.role}', but the resource was "
            f"allocated to role '{allocated}'"
        )
    if allocated not in requester.roles:
        raise OperationError(
            f"A reserve operation was attempted for a resource allocated to role '{allocated}', but the framework "
            f"only has roles '{{ {', '.join(requester.roles)} }}'"
        )


def _check_volumes(volumes: Resources, place: Place, prefix: str = "Not a persistent volume: ") -> None:
    for key, amount in volumes.items.items():
        if not key.is_volume:
            text = Resources({key: amount}).describe(place.role)
            raise OperationError(f"{prefix}{text} is not a persistent volume")


def _is_checkpointed(key: Key) -> bool:
    return bool(key.stack) and (key.is_volume or any(item.kind == DYNAMIC for item in key.stack))


def _pristine(key: Key) -> Key:
    """Return what an agent had before anybody reserved or made a volume of it."""
    bare = key.stripped() if key.is_volume else key
    return bare._replace(stack=tuple(item for item in bare.stack if item.kind != DYNAMIC))
