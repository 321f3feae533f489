"""Bundles: the executor as one file, which every scheduler serves and Mesos' fetcher brings to the agents.

A bundle is named by its SHA-256, so that all schedulers mean the same bytes, the fetcher's cache never serves an old one,
and the agent's shell checks what it got before it runs it. Which agent gets which is told by an attribute of agents
(an architecture, a Python); one bundle may be for all the rest. `stoker bundle` makes them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stoker.framework.errors import ConfigError

BUNDLES_MAX = 32
BUNDLE_BYTES_MAX = 2**30
PIECE_BYTES = 256 * 1024
PATH = "/v1/bundles/"
SANDBOX_NAME = "stoker-executor.pex"

_FOR = re.compile(r"(?P<attribute>[A-Za-z0-9_.-]+):(?P<value>[^=/]+)=(?P<path>.+)", re.DOTALL)


class Bundle(NamedTuple):
    """A file that starts the executor, for agents whose `attribute` has that `value` (both empty: for all others)."""

    attribute: str
    value: str
    path: str
    digest: str
    size: int


class Bundles:
    """The bundles that one scheduler was given. The files must not change while it runs: it reads them when asked."""

    def __init__(self, bundles: Sequence[Bundle] = ()) -> None:
        self._bundles = tuple(bundles)

    def __bool__(self) -> bool:
        return bool(self._bundles)

    def choose(self, attributes: Sequence[tuple[str, str]]) -> Bundle | None:
        """Return the bundle for an agent of these attributes; None: there is none for it."""
        for bundle in self._bundles:
            if bundle.attribute and (bundle.attribute, bundle.value) in attributes:
                return bundle
        return next((bundle for bundle in self._bundles if not bundle.attribute), None)

    def find(self, digest: str) -> Bundle | None:
        return next((bundle for bundle in self._bundles if bundle.digest == digest), None)


def parse_bundle(text: str) -> tuple[str, str, str]:
    """Return (attribute, value, path) of `[ATTRIBUTE:VALUE=]FILE`.

    >>> parse_bundle("arch:aarch64=/b/arm.pex"), parse_bundle("/b/x86.pex")
    (('arch', 'aarch64', '/b/arm.pex'), ('', '', '/b/x86.pex'))
    """
    match = _FOR.fullmatch(text)
    return (match["attribute"], match["value"], match["path"]) if match else ("", "", text)


def open_bundles(texts: Sequence[str]) -> Bundles:
    """Return the bundles of `[ATTRIBUTE:VALUE=]FILE` each, their digests taken; reads the files once, whole.

    :raises ConfigError: a file cannot be read, is empty or too large, or two are for the same agents.
    """
    bundles: list[Bundle] = []
    problems: list[str] = []
    for text in texts[: BUNDLES_MAX + 1]:
        attribute, value, path = parse_bundle(text)
        if any((b.attribute, b.value) == (attribute, value) for b in bundles):
            whom = f"agents of {attribute}:{value}" if attribute else "all agents"
            problems.append(f"--bundle {text!r}: there is another one for {whom}")
            continue
        try:
            digest, size = _digest(path)
            with open(path, "rb") as file:
                begins = file.read(2)
        except OSError as error:
            problems.append(f"--bundle {path}: {error.strerror or error}")
            continue
        if size and begins != b"#!":
            problems.append(
                f"--bundle {path}: no program that an agent could start; `stoker bundle` makes one"
            )
        if not 0 < size <= BUNDLE_BYTES_MAX:
            problems.append(f"--bundle {path}: {size} bytes; 1 to {BUNDLE_BYTES_MAX} are allowed")
        bundles.append(Bundle(attribute, value, os.path.abspath(path), digest, size))
    if len(texts) > BUNDLES_MAX:
        problems.append(f"{len(texts)} bundles; at most {BUNDLES_MAX} are allowed")
    if problems:
        raise ConfigError(problems)
    return Bundles(bundles)


def read_bundle(bundle: Bundle) -> Iterator[bytes]:
    """Yield the file's bytes. :raises OSError: it is not there any more, or was cut."""
    with open(bundle.path, "rb") as file:
        left = bundle.size
        while left:
            piece = file.read(min(PIECE_BYTES, left))
            if not piece:
                raise OSError(f"the bundle {bundle.path} has become shorter")
            left -= len(piece)
            yield piece


def bundle_command(bundle: Bundle) -> str:
    """Return what an agent's shell runs in a sandbox into which the bundle was fetched.

    What the bundle unpacks is kept for the next executor of the same user on the agent, in a directory that only this user
    can write; where there is none to be had, in the sandbox.
    """
    name = shlex.quote(SANDBOX_NAME)
    return (
        f"echo '{bundle.digest}  {SANDBOX_NAME}' | sha256sum -c --status || "
        "{ echo 'the fetched bundle is not what the scheduler serves' >&2; exit 1; }; "
        'd="${TMPDIR:-/tmp}/stoker-bundles-$(id -u)"; mkdir -m 700 "$d" 2>/dev/null; '
        '[ -d "$d" ] && [ ! -L "$d" ] && [ -O "$d" ] && [ -w "$d" ] || '
        '{ echo "$d cannot be used: the bundle is unpacked into the sandbox" >&2; d="$PWD/.bundle"; }; '
        f'export PEX_ROOT="$d"; exec ./{name}'
    )


def uri(bundle: Bundle, scheduler: str) -> dict[str, object]:
    """Return the URI of a CommandInfo that brings the bundle, from the scheduler at `scheduler` (a URL)."""
    return {
        "value": f"{scheduler}{PATH}{bundle.digest}",
        "executable": True,
        "extract": False,
        "cache": True,
        "output_file": SANDBOX_NAME,
    }


def _digest(path: str) -> tuple[str, int]:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
