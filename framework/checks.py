"""What may come in through the API: JSON bodies, names, paths, sources, options, heartbeats. Everything else is refused
with what is allowed, before anything is changed.

Bodies are checked against the same schemas that the OpenAPI document shows (a subset of JSON Schema: type, required,
properties, additionalProperties, items, enum, pattern, minimum, maximum, maxLength, maxItems, maxProperties).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from stoker.executor.messages import HEARTBEAT_BYTES_MAX, UNKNOWN_MAX, Heartbeat
from stoker.executor.units import format_bytes
from stoker.framework.errors import Refused
from stoker.framework.model import NAME, NAME_RULE, PATH_BYTES_MAX, Refusal, Settings

_LIMITS = Settings()
BODY_BYTES_MAX = 1024 * 1024
DEPTH_MAX = 16
SOURCE_BYTES_MAX = _LIMITS.source_bytes_max
OPTIONS_MAX = 64
OPTIONS_BYTES_MAX = _LIMITS.options_bytes_max
PATHS_MAX = 1_024  # of one job
PATHS_BYTES_MAX = _LIMITS.job_paths_bytes_max
KEY_CHARS_MAX = _LIMITS.key_bytes_max
PATH_RULE = f"relative to the dataset, components joined by '/', none of them empty, '.' or '..', no NUL, at most {PATH_BYTES_MAX} bytes"
NUMBER_MAX = 2**63 - 1  # in a heartbeat
BLOCK_INDEX_MAX = 8 * HEARTBEAT_BYTES_MAX  # no bitmap that fits a heartbeat names a later block
SOURCE_RULE = "SCHEME://..., or an absolute path (the same as file://)"

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_SECRET_NAME = re.compile(
    r"secret|passw|passphrase|token|credential|connection_?string|authorization|(account|access|api|private|sas|shared|client|master)_?key",
    re.IGNORECASE,
)
_SECRET_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/.+", re.DOTALL)
_NOT_SECRET = frozenset({"", "anon", "google_default", "cloud"})
# Schemes that read the machine itself, or wrap another source and could so read it; see `check_source`.
_LOCAL_SCHEMES = frozenset({"file", "local", "memory"})
_WRAPPING_SCHEMES = frozenset(
    "asynclocal blockcache cached dask data dbfs dir filecache generic git gitsync jlab jupyter libarchive reference "
    "root simplecache tar zip".split()
)
_WRAPPING_OPTIONS = frozenset({"fo", "fs", "fss", "target_protocol", "target_options", "remote_protocol"})


def refuse(message: str, hint: str = "", *, status: int = 400, code: str = "bad_request") -> NoReturn:
    """:raises Refused: always."""
    raise Refused(Refusal(status, code, message, hint))


# --- JSON


def parse_json(data: bytes) -> Any:
    """Return the value of strict JSON: UTF-8, no key twice, no NaN, no deeper than DEPTH_MAX.

    :raises Refused: it is not.
    """
    if not data.strip():
        refuse("the body is empty", "send a JSON object")
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        text.encode("utf-8")
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        refuse(f"the body is not JSON: {_one_line(error)}", "send a JSON object, in UTF-8")
    _check_depth(value, DEPTH_MAX)
    return value


def check_schema(value: Any, schema: Mapping[str, Any], where: str) -> None:
    """:raises Refused: `value` is not what `schema` says; `where` names it in the message."""
    kind = schema.get("type")
    if kind is not None and not _is_kind(value, kind):
        refuse(f"{where} must be {_KIND_NAMES[kind]}, not {_kind_name(value)}")
    if "enum" in schema and value not in schema["enum"]:
        refuse(f"{where} is {_shown(value)}", f"one of {', '.join(map(str, schema['enum']))}")
    if kind == "object":
        _check_object(value, schema, where)
    elif kind == "array":
        _check_limit(len(value), schema.get("maxItems"), where, "entries")
        for index, item in enumerate(value):
            check_schema(item, schema["items"], f"{where}[{index}]")
    elif kind == "string":
        _check_text(value, schema, where)
    elif kind == "integer":
        _check_number(value, schema, where)


def _check_object(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> None:
    properties = schema.get("properties", {})
    rest = schema.get("additionalProperties", False)
    unknown = [name for name in value if name not in properties]
    if unknown and rest is False:
        allowed = f"known are {', '.join(properties)}" if properties else "it has no fields"
        refuse(f"{where} has no field {_shown(unknown[0])}", allowed, code="unknown_field")
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        refuse(f"{where} lacks {missing[0]!r}", f"needed are {', '.join(schema['required'])}")
    _check_limit(len(value), schema.get("maxProperties"), where, "fields")
    for name, item in value.items():
        check_schema(item, properties.get(name, rest), f"{where}.{_cut(name)}")


def _check_text(value: str, schema: Mapping[str, Any], where: str) -> None:
    _check_limit(len(value), schema.get("maxLength"), where, "characters")
    if not is_text(value):
        refuse(f"{where} is not text: it has a lone surrogate or a NUL")
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        refuse(
            f"{where} is {_shown(value)}", str(schema.get("description", f"must match {schema['pattern']}"))
        )


def _check_number(value: int, schema: Mapping[str, Any], where: str) -> None:
    low, high = schema.get("minimum"), schema.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        if where.endswith("_bytes") and low is not None and high is not None:
            low, high = format_bytes(low), format_bytes(high)
        refuse(f"{where} is {_shown(value)}", f"{low} to {high}")


def _check_limit(count: int, most: int | None, where: str, what: str) -> None:
    if most is not None and count > most:
        refuse(f"{where} has {count} {what}", f"at most {most}")


_KIND_NAMES = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "boolean": "true or false",
}


def _is_kind(value: Any, kind: str) -> bool:
    match kind:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "integer":
            return type(value) is int
        case _:
            return isinstance(value, bool)


def _kind_name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return "a fraction"
    return next(name for kind, name in _KIND_NAMES.items() if _is_kind(value, kind))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is given twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(value: Any, depth_left: int) -> None:
    """Walk level by level: no recursion over input."""
    level = [value]
    while level:
        if depth_left < 0:
            refuse(f"the body is nested deeper than {DEPTH_MAX} levels")
        depth_left -= 1
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]


# --- names, paths, sources, options


def check_name(name: str, *, what: str = "a dataset's name") -> str:
    """Return `name`. :raises Refused: it breaks NAME_RULE."""
    if not NAME.fullmatch(name):
        refuse(f"{_shown(name)} is not {what}", NAME_RULE)
    return name


def check_path(path: str) -> str:
    """Return `path` without one trailing '/'; "" is the whole dataset. :raises Refused: it breaks PATH_RULE."""
    clean = path.removesuffix("/")
    if not is_text(path) or len(path.encode()) > PATH_BYTES_MAX or path.startswith("/"):
        refuse(f"{_shown(path)} is not a path", PATH_RULE)
    if clean and any(part in ("", ".", "..") for part in clean.split("/")):
        refuse(f"{_shown(path)} is not a path", PATH_RULE)
    return clean


def check_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of a job, each once, in order. :raises Refused: one is wrong, or all together are too long."""
    clean = tuple(dict.fromkeys(check_path(path) for path in paths))
    if sum(len(path.encode()) for path in clean) > PATHS_BYTES_MAX:
        refuse(
            f"the paths have more than {PATHS_BYTES_MAX} bytes together",
            "name directories instead of single files",
            status=413,
            code="too_large",
        )
    return () if "" in clean else clean


def check_source(source: str, allowed_prefixes: Sequence[str], known_schemes: Collection[str] = ()) -> str:
    """Return `source` as a URL (an absolute path becomes file://). `allowed_prefixes`: see Config.allow_sources;
    `known_schemes`: what can be opened, empty where that is not known.

    :raises Refused: not a source, or not one that this cluster takes.
    """
    if not is_text(source) or len(source.encode()) > SOURCE_BYTES_MAX - 7 or source != source.strip():
        refuse(
            f"{_shown(source)} is not a source",
            f"{SOURCE_RULE}, at most {SOURCE_BYTES_MAX} bytes, no spaces around it",
        )
    url = f"file://{source}" if source.startswith("/") else source
    scheme, separator, rest = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme.split("::")[-1]) or not rest:
        refuse(f"{_shown(source)} is not a source", SOURCE_RULE)
    schemes = scheme.split("::") + [link.split("://")[0] for link in rest.split("::") if "://" in link]
    unknown = [each for each in schemes if known_schemes and each not in known_schemes]
    if unknown:
        refuse(
            f"unknown scheme {unknown[0]}:// in {_shown(source)}",
            f"known are {', '.join(sorted(known_schemes))}",
        )
    if ".." in rest.split("/") or ".." in unquote(rest).split("/"):  # a web server decodes before it resolves
        refuse(f"{_shown(source)} is not a source", "write it without '..'")
    if _password_of(url):
        refuse(
            "the source has a password in it",
            "give it as --option NAME=env:VARIABLE or NAME=file:PATH, it would be journaled here",
        )
    _check_allowed(url, allowed_prefixes)
    return url


def _check_allowed(url: str, allowed_prefixes: Sequence[str]) -> None:
    if any(_is_under(url, prefix) for prefix in allowed_prefixes):
        return
    if allowed_prefixes:
        shown = ", ".join(allowed_prefixes)
        refuse(
            f"{_shown(url)} may not be added here",
            f"allowed are {shown} (the scheduler's --allow-source)",
            code="source_not_allowed",
        )
    scheme = url.split("://", 1)[0]
    if "::" in url or scheme in _LOCAL_SCHEMES | _WRAPPING_SCHEMES:
        refuse(
            f"{scheme}:// reads the machines themselves, which is not allowed here",
            f"start the scheduler with --allow-source {_cut(url)}",
            code="source_not_allowed",
        )


def _is_under(url: str, prefix: str) -> bool:
    if prefix.startswith("/"):
        prefix = f"file://{prefix}"
    if not prefix or url == prefix:
        return True
    # What follows "::" is a source of its own, which the prefix says nothing about.
    return url.startswith(prefix if prefix.endswith("/") else f"{prefix}/") and "::" not in url[len(prefix) :]


def _password_of(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        refuse(f"{_shown(url)} is not a source", SOURCE_RULE)


def check_options(options: Mapping[str, str], allowed_prefixes: Sequence[str]) -> dict[str, str]:
    """Return the options. :raises Refused: a secret is written out, they are too long, or they lead around the allowed sources."""
    if sum(len(k.encode()) + len(v.encode()) for k, v in options.items()) > OPTIONS_BYTES_MAX:
        refuse(f"the options have more than {OPTIONS_BYTES_MAX} bytes together")
    for name, value in options.items():
        if _SECRET_NAME.search(name) and value not in _NOT_SECRET and not _SECRET_REFERENCE.fullmatch(value):
            refuse(
                f"the option {_shown(name)} is a secret, and options are journaled and shown",
                f"write {_cut(name)}=env:VARIABLE or {_cut(name)}=file:/PATH, resolved where the source is read",
            )
        if name in _WRAPPING_OPTIONS and "" not in allowed_prefixes:
            refuse(
                f"the option {name!r} leads to another source",
                "add that source itself",
                code="source_not_allowed",
            )
    return dict(options)


def check_drain(body: Mapping[str, Any]) -> str:
    """Return the agent that a drain names. :raises Refused: it names none, or something else besides."""
    rest = sorted(set(body) - {"kind", "agent"})
    if rest:
        refuse(f"a drain takes no {rest[0]!r}", "it names an agent, and nothing else")
    if not body.get("agent"):
        refuse("a drain names an agent", "agent: its id or hostname; GET /v1/agents lists them")
    return str(body["agent"])


def check_key(key: str) -> str:
    """Return an Idempotency-Key. :raises Refused: too long, or not printable ASCII."""
    if not key or len(key) > KEY_CHARS_MAX or not key.isascii() or not key.isprintable():
        refuse("the Idempotency-Key is not usable", f"1 to {KEY_CHARS_MAX} printable ASCII characters")
    return key


def check_heartbeat(heartbeat: Heartbeat) -> None:
    """:raises Refused: a field is not of its kind. Its sender may be anyone: nothing is said of its secret here."""
    _check_message(heartbeat, "the heartbeat")


def _check_message(message: Any, where: str) -> None:
    for field in dataclasses.fields(message):
        value, kind, what = getattr(message, field.name), str(field.type), f"{where}.{field.name}"
        if kind == "DiskReport | None":
            if value is not None:
                _check_message(value, what)
        elif kind == "tuple[tuple[int, int], ...]":
            _check_pairs(value, what)
        elif kind == "tuple[int, ...]":
            _check_indexes(value, what)
        elif kind.startswith("tuple["):
            for item in value:
                _check_message(item, what)
        else:
            _check_plain(value, kind, what)


def _check_plain(value: Any, kind: str, what: str) -> None:
    if (type(value).__name__ if value is not None else "None") not in kind.split(" | "):
        refuse(f"{what} must be {kind}, not {type(value).__name__}")
    if type(value) is int and not 0 <= value <= NUMBER_MAX:
        refuse(f"{what} is {_shown(value)}", f"0 to {NUMBER_MAX}")


def _check_indexes(value: Any, what: str) -> None:
    for number in value:
        if type(number) is not int or not 0 <= number <= BLOCK_INDEX_MAX:
            refuse(f"{what} holds {_shown(number)}", f"whole numbers, 0 to {BLOCK_INDEX_MAX}")


def _check_pairs(value: Any, what: str) -> None:
    if len(value) > UNKNOWN_MAX:
        refuse(f"{what} has {len(value)} items", f"at most {UNKNOWN_MAX}")
    for number in (number for pair in value for number in pair):
        if type(number) is not int or not 0 <= number <= NUMBER_MAX:
            refuse(f"{what} holds {_shown(number)}", f"whole numbers, 0 to {NUMBER_MAX}")


def is_text(value: str) -> bool:
    """Return whether `value` can be written as UTF-8 and has no NUL."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


def _shown(value: Any) -> str:
    return ascii(value) if len(ascii(value)) <= 100 else f"{ascii(value)[:100]}..."


def _one_line(error: Exception) -> str:
    return _cut(" ".join(str(error).split())) or type(error).__name__
