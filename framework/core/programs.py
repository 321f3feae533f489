"""What an executor is started from, as people write it: a Python that agents have, or a container image. Pure."""

from __future__ import annotations

import re

PROGRAM_BYTES_MAX = 1024
PROGRAM_RULE = "python:/ABSOLUTE/PATH of a Python that has Stoker on every agent, or image:NAME[:TAG] of a container image"

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")


def parse_program(text: str) -> tuple[str, str]:
    """Return ("python", path) or ("image", name); ("", "") of an empty text: as the schedulers are told.

    >>> parse_program("image:registry.example/stoker:1.0")
    ('image', 'registry.example/stoker:1.0')

    :raises ValueError: it is neither.
    """
    if not text:
        return "", ""
    kind, _, value = text.partition(":")
    is_good = {
        "python": value.startswith("/") and "\0" not in value,
        "image": _IMAGE.fullmatch(value) is not None,
    }
    if len(text.encode()) > PROGRAM_BYTES_MAX or not is_good.get(kind, False):
        raise ValueError(f"the executor is {text[:200]!r}: write {PROGRAM_RULE}")
    return kind, value
