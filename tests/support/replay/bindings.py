"""Recorded values against those of the running Mesos: which id stands for which, what may differ, and durations on another scale.

A recorded id is bound to the running one where it is first seen at the same place; from then on each recorded text and call that
holds it is compared, or sent, with the running one in its place. No two recorded ids stand for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from support.replay.recording import Message

Path = tuple[str, ...]

_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_ID = re.compile(rf"({_UUID})(-S\d+|-O\d+|-\d{{4}}(?!\d))?")
_BASE64_UUID = re.compile(r"[A-Za-z0-9+/]{22}==")
_DURATION = re.compile(r"\b(\d+(?:\.\d+)?)(ms|secs|mins|hrs)\b")
_UNITS_S = {"ms": 0.001, "secs": 1.0, "mins": 60.0, "hrs": 3600.0}
_AGENT = re.compile(r"slave\(\d+\)@[\d.]+:\d+")  # an agent's address in a text
_SLEEP = re.compile(r"\bsleep (\d+(?:\.\d+)?)")
_SHAPES = {"S": r"-S\d+", "O": r"-O\d+", "": r"-\d{4}"}

# Fields whose value is the running one's own affair; a dotted path stands for its ends.
FREE = frozenset(
    {
        *("timestamp", "executor_pid", "ip_address", "unreachable_time.nanoseconds"),
        *("master_info.ip", "master_info.port", "master_info.pid", "master_info.hostname", "agent_info.port"),
        *("address.ip", "address.port", "address.hostname", "offers.hostname", "agent_info.hostname"),
        *(
            "slaves.port",
            "slaves.pid",
            "start_time",
            "elected_time",
            "pid",
            "leader",
            "leader_info",
            "flags",
            "directory",
        ),
        *(
            "registered_time",
            "reregistered_time",
            "unregistered_time",
            "cluster",
            "log_dir",
            "build_date",
            "build_time",
        ),
        "url.path",  # each recorded agent is slave(1) of a process of its own
    }
)
# Lists whose order says nothing.
UNORDERED = frozenset(
    {
        *(
            "resources",
            "offers",
            "executor_ids",
            "executors",
            "inverse_offers",
            "volumes",
            "capabilities",
            "tasks",
        ),
        *(
            "completed_tasks",
            "slaves",
            "frameworks",
            "completed_frameworks",
            "unreachable_tasks",
            "completed_executors",
        ),
    }
)
# Durations of the recording in seconds, up to a length that a test could wait for.
SECONDS = frozenset(
    {"refuse_seconds", "failover_timeout", "heartbeat_interval_seconds"}
    | {f"{name}_seconds" for name in ("delay", "interval", "timeout", "grace_period")}
)
NANOSECONDS = frozenset(
    {"grace_period", "max_grace_period", "shutdown_grace_period", "max_completion_time", "duration"}
)
_WAIT_S_MAX = 3600


class Difference(NamedTuple):
    path: Path
    expected: Any
    actual: Any

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: recorded {_short(self.expected)}, here {_short(self.actual)}"


class Missing:
    """Stands for a field that is not there."""

    def __repr__(self) -> str:
        return "nothing"


class Bindings:
    """Ids, substituted texts and the scale of one run. `scale` 5 means: five times faster than recorded."""

    def __init__(self, scale: float = 1.0, free: frozenset[str] = frozenset()) -> None:
        self.scale = scale
        self.free = FREE | free
        self.ids: dict[str, str] = {}
        self.merged: dict[
            str, list[str]
        ] = {}  # recorded id of an offer -> the ids of those that make it up here
        self.only_first_line = False
        # Others use this Mesos as well: lists of an operator's answer hold more than ours.
        self.is_shared = False
        # There may be fields that the recording does not have: the recorder shortened operators' answers.
        self.may_have_more = False
        self.more: dict[
            str, set[float]
        ] = {}  # resource -> by how much agents here may have more than recorded
        self.texts: dict[str, str] = {}  # recorded text in a command or path -> the running one's
        self.absolute_ns: Callable[[int], int] | None = None  # recorded point in time -> the running one's

    def copy(self) -> Bindings:
        other = Bindings(self.scale)
        other.free = self.free
        other.ids, other.texts, other.absolute_ns = dict(self.ids), self.texts, self.absolute_ns
        other.may_have_more, other.is_shared = self.may_have_more, self.is_shared
        other.merged, other.only_first_line, other.more = self.merged, self.only_first_line, self.more
        return other

    def adopt(self, other: Bindings) -> None:
        self.ids = other.ids

    # What is sent.

    def ours(self, value: Any, path: Path = ()) -> Any:
        """Return a recorded value as it is sent to the running Mesos."""
        if isinstance(value, dict):
            if path and path[-1] == "max_grace_period" and self.scale != 1:
                seconds = value["seconds"] / self.scale
                return {"seconds": int(seconds), "nanos": round(seconds % 1 * 1e9)}
            return {key: self.ours(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            if path and path[-1] == "offer_ids":
                value = [one for item in value for one in self._parts(item)]
            return [self.ours(item, path) for item in value]
        if isinstance(value, str):
            return self.our_text(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return self._our_number(value, path)
        return value

    def _parts(self, offer_id: Message) -> list[Message]:
        ids = self.merged.get(offer_id.get("value", ""))
        return [{"value": one} for one in ids] if ids else [offer_id]

    def our_text(self, text: str) -> str:
        for recorded, running in self.texts.items():
            text = text.replace(recorded, running)
        if text in self.ids:
            return self.ids[text]
        if self.scale != 1:
            text = _SLEEP.sub(self._shorter_sleep, text)
        return _ID.sub(self._our_id, text)

    def _shorter_sleep(self, match: re.Match[str]) -> str:
        seconds = float(match[1])
        return match[0] if seconds >= 60 else f"sleep {seconds / self.scale:g}"

    def _our_id(self, match: re.Match[str]) -> str:
        whole, prefix, suffix = match[0], match[1], match[2] or ""
        if whole.lower() in self.ids and whole not in self.ids:  # the recorder wrote an id in capitals
            return self.ids[whole.lower()].upper()
        return self.ids.get(whole, self.ids.get(prefix, prefix) + suffix)

    def _our_number(self, value: float, path: Path) -> float:
        key, parent = path[-1] if path else "", path[-2] if len(path) > 1 else ""
        if key in SECONDS and 0 < value <= _WAIT_S_MAX:
            return value / self.scale
        if key == "nanoseconds" and parent in NANOSECONDS:
            return round(value / self.scale)
        if key == "nanoseconds" and parent == "start" and self.absolute_ns is not None:
            return self.absolute_ns(int(value))
        return value

    # What comes.

    def differences(self, expected: Any, actual: Any, path: Path = ()) -> list[Difference]:
        """Compare a recorded value with the running one's, and bind the ids that are new."""
        if self._is_free(path):
            return []
        if isinstance(expected, dict) and isinstance(actual, dict):
            return list(self._compare_fields(expected, actual, path))
        if self.may_have_more and isinstance(expected, int) and isinstance(actual, list):
            is_same = expected == len(actual) or self.is_shared  # so the recorder shortened it
            return [] if is_same else [Difference(path, expected, len(actual))]
        if isinstance(expected, list) and isinstance(actual, list):
            if path and path[-1] in UNORDERED:
                return self._compare_unordered(expected, actual, path)
            if len(expected) != len(actual):
                return [Difference(path, expected, actual)]
            pairs = zip(expected, actual, strict=True)
            return [found for one, other in pairs for found in self.differences(one, other, path)]
        if isinstance(expected, str) and isinstance(actual, str):
            return (
                []
                if self.is_same_text(expected, actual)
                else [Difference(path, self.ours(expected, path), actual)]
            )
        if isinstance(expected, bool) or isinstance(actual, bool):
            return [] if expected is actual else [Difference(path, expected, actual)]
        if isinstance(expected, (int, float)) and isinstance(actual, (int, float)):
            wanted = self._our_number(expected, path)
            return (
                []
                if abs(wanted - actual) <= 1e-6 * max(1.0, abs(wanted))
                else [Difference(path, wanted, actual)]
            )
        return [] if expected == actual else [Difference(path, expected, actual)]

    def _is_free(self, path: Path) -> bool:
        return any(".".join(path[-depth:]) in self.free for depth in range(1, min(4, len(path)) + 1))

    def _compare_fields(self, expected: Message, actual: Message, path: Path) -> Iterator[Difference]:
        trimmed = expected.get("trimmed", False)
        if self.more and "resources" in path:
            expected = self._as_configured(expected, actual)
        for key in expected.keys() - {"trimmed"}:
            if key in actual or not self.may_have_more or expected[key] is not None:
                yield from self.differences(expected[key], actual.get(key, Missing()), (*path, key))
        for key in actual.keys() - expected.keys():
            if not trimmed and not self.may_have_more and not self._is_free((*path, key)):
                yield Difference((*path, key), Missing(), actual[key])

    def _as_configured(self, expected: Message, actual: Message) -> Message:
        """Return a recorded resource with the amount that it has here, if that comes of how the agents are configured."""
        if "scalar" in expected and "scalar" in actual:
            off = actual["scalar"]["value"] - expected["scalar"]["value"]
            if any(abs(off - more) < 1e-3 for more in self.more.get(expected.get("name", ""), ())):
                return expected | {"scalar": actual["scalar"]}
        if (
            "ranges" in expected
            and "ranges" in actual
            and any(off for offs in self.more.values() for off in offs)
        ):
            return expected | {"ranges": actual["ranges"]}
        return expected

    def _compare_unordered(self, expected: list[Any], actual: list[Any], path: Path) -> list[Difference]:
        if len(expected) != len(actual) and not (self.may_have_more and self.is_shared):
            return [Difference(path, expected, actual)]
        return self.assign(expected, actual, path)[0]

    def assign(
        self, expected: list[Any], actual: list[Any], path: Path
    ) -> tuple[list[Difference], list[int]]:
        """Find for each of `expected` another one of `actual`; return what differs at best, and the places of those found."""
        found = self._exact(expected, actual, path, [])
        if found is not None:
            self.adopt(found[0])
            return [], found[1]
        differences: list[Difference] = []
        taken: list[int] = []
        for one in expected:
            trials = []
            for place in (n for n in range(len(actual)) if n not in taken):
                trial = self.copy()
                trials.append((trial.differences(one, actual[place], path), place, trial))
            if not trials:
                differences.append(Difference(path, one, Missing()))
                continue
            wrong, place, trial = min(trials, key=lambda item: len(item[0]))
            self.adopt(trial)
            differences += wrong
            taken.append(place)
        return differences, taken

    def _exact(
        self, expected: list[Any], actual: list[Any], path: Path, taken: list[int]
    ) -> tuple[Bindings, list[int]] | None:
        if not expected:
            return self, taken
        for place in (n for n in range(len(actual)) if n not in taken):
            trial = self.copy()
            if not trial.differences(expected[0], actual[place], path):
                rest = trial._exact(expected[1:], actual, path, [*taken, place])
                if rest is not None:
                    return rest
        return None

    def is_same_text(self, expected: str, actual: str) -> bool:
        """Whether `actual` is the recorded text with the running ids, durations and paths in it; new ids are bound."""
        if self.only_first_line:
            expected, actual = expected.partition("\n")[0], actual.partition("\n")[0]
        expected, actual = _AGENT.sub("slave", expected), _AGENT.sub("slave", actual)
        if _BASE64_UUID.fullmatch(expected) and _BASE64_UUID.fullmatch(actual):
            return self._bind(expected, actual)
        if self.our_text(expected) == actual:
            return True
        if expected.startswith("/sandbox/"):
            return actual.startswith("/") and self._bind(expected, actual)
        pattern, names = self._pattern(expected)
        match = re.fullmatch(pattern, actual, re.DOTALL)
        if not match:
            return False
        trial = self.copy()
        for (name, is_duration), running in zip(names, match.groups(), strict=True):
            if not (self._is_same_duration(name, running) if is_duration else trial._bind(name, running)):
                return False
        self.adopt(trial)
        return True

    def _bind(self, recorded: str, running: str) -> bool:
        if recorded in self.ids:
            return self.ids[recorded] == running
        if running in self.ids.values():
            return False
        self.ids[recorded] = running
        return True

    def _pattern(self, expected: str) -> tuple[str, list[tuple[str, bool]]]:
        """Return a regular expression for what `expected` may look like here, and what its groups stand for."""
        text = expected
        for recorded, running in self.texts.items():
            text = text.replace(recorded, running)
        pieces, names, position = [], [], 0
        marks = sorted([*_ID.finditer(text), *_DURATION.finditer(text)], key=lambda match: match.start())
        for match in marks:
            if match.start() < position:
                continue
            pieces.append(re.escape(text[position : match.start()]))
            position = match.end()
            is_duration = match.re is _DURATION
            if not is_duration and match[0] in self.ids:
                pieces.append(re.escape(self.ids[match[0]]))
                continue
            names.append((match[0], is_duration))
            if is_duration:
                pieces.append(rf"({_DURATION.pattern.replace('(', '(?:', 1).replace('(ms', '(?:ms')})")
            else:
                suffix = match[2] or ""
                pieces.append(
                    rf"({_UUID}{_SHAPES[suffix[1:2] if suffix[1:2] in 'SO' else ''] if suffix else ''})"
                )
        return "".join([*pieces, re.escape(text[position:])]), names

    def _is_same_duration(self, recorded: str, running: str) -> bool:
        one, other = (float(match[1]) * _UNITS_S[match[2]] for match in map(_parse, (recorded, running)))
        return any(abs(other - one / scale) <= 0.002 + 0.01 * one / scale for scale in (1.0, self.scale))


def _parse(text: str) -> re.Match[str]:
    match = _DURATION.fullmatch(text)
    assert match
    return match


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:300] + "..."
