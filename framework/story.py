"""Events, entries and actions as one line of text each, for logs and for the story told when something went wrong.

Bounded in length, and without secrets.
"""

from __future__ import annotations

from typing import Any

from stoker.framework.core.events import Event, HeartbeatReceived, OffersReceived

LINE_CHARS_MAX = 400
VALUE_CHARS_MAX = 160
HIDDEN = frozenset({"secret", "seed", "options"})
TOO_LONG = frozenset({"requested_blocks", "wanted_blocks", "explained"})  # GET /v1/offers tells the last


def describe(value: Any) -> str:
    """Return `Name field=value ...` of a dataclass or named tuple; secrets are left out, long values cut.

    >>> from stoker.framework.core.entries import LaunchEnded
    >>> describe(LaunchEnded(7, "lost", 1000))
    "LaunchEnded launch_id=7 reason='lost' wall_ms=1000"
    """
    parts = [type(value).__name__]
    for name in _names(value):
        held = getattr(value, name)
        if name in HIDDEN or name in TOO_LONG:
            continue
        if _names(held):
            parts.append(f"{name}=({describe(held)})")
        else:
            text = held.hex() if isinstance(held, bytes) else repr(held)
            parts.append(f"{name}={_cut(text, VALUE_CHARS_MAX)}")
    return _cut(" ".join(parts), LINE_CHARS_MAX)


def gist(event: Event) -> Event | str:
    """Return what to remember of an event: itself, or of a large one a line, so that memory is bounded."""
    if isinstance(event, HeartbeatReceived):
        beat = event.heartbeat
        return f"HeartbeatReceived slot_id={beat.slot_id} launch_id={beat.launch_id} sequence={beat.sequence}"
    if isinstance(event, OffersReceived):
        return f"OffersReceived offers={len(event.offers)}"
    return event


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else f"{text[: chars_max - 3]}..."


def _names(value: Any) -> tuple[str, ...]:
    """Return the names of its fields; none of a plain value."""
    return getattr(value, "_fields", ()) or tuple(getattr(value, "__dataclass_fields__", ()))
