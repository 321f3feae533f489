"""Sizes and durations as people write them: `10GiB`, `64MB`, `2s`.

Used wherever a human types or reads; everywhere else sizes are integer bytes and times integer milliseconds.
"""

from __future__ import annotations

import re

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kKmMgGtTpP]?)(i?)[bB]?\s*$")
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)?\s*$")
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_MILLISECONDS = {"ms": 1, "s": 1000, None: 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` names; `1GiB` is 2**30, `1GB` and `1G` are 10**9, a bare number is bytes.

    >>> parse_bytes("64MiB"), parse_bytes("1.5kB"), parse_bytes("12")
    (67108864, 1500, 12)

    :raises ValueError: not a size; the message shows the allowed form.
    """
    match = _SIZE.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a size: write a number and a unit, such as 512MiB, 10GiB or 2GB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWER[unit.lower()])


def format_bytes(count: float) -> str:
    """Return `count` bytes in the largest binary unit that keeps at least one digit before the point.

    >>> format_bytes(0), format_bytes(1536), format_bytes(3 * 2**30)
    ('0 B', '1.5 KiB', '3.0 GiB')
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


def parse_duration_ms(text: str) -> int:
    """Return milliseconds; a bare number is seconds.

    >>> parse_duration_ms("20ms"), parse_duration_ms("1.5s"), parse_duration_ms("10")
    (20, 1500, 10000)

    :raises ValueError: not a duration; the message shows the allowed form.
    """
    match = _DURATION.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a duration: write a number and a unit, such as 20ms, 10s or 5m")
    number, unit = match.groups()
    return int(float(number) * _MILLISECONDS[unit])
