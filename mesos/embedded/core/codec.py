"""JSON <-> Mesos messages, the way Mesos' own codec sees them.

Owns the rules (unknown fields are dropped, null is unset, enums go by name, numbers may be strings, bytes are base64, what has
a default is always written) and the texts of its complaints. A decoded message is a plain dict in wire form, so that it can be
sent on without another conversion. Knows no call: which messages there are stands in `messages.py`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, TypeAlias

Message: TypeAlias = dict[str, Any]

DEPTH_MAX = 100  # of nested objects and arrays; Mesos' own messages need a dozen

_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


class CodecError(Exception):
    """The JSON is not the message it should be; the text says which field and why."""


class Field(NamedTuple):
    """One field of a message: `kind` is a scalar kind, `any`, an enum's or a message's name."""

    kind: str
    repeated: bool
    required: bool
    default: object


class Schema(NamedTuple):
    """Messages by name (field name -> Field) and enums by name (their values)."""

    messages: Mapping[str, Mapping[str, Field]]
    enums: Mapping[str, frozenset[str]]


def parse_json(body: bytes) -> object:
    """Return the JSON value in `body`.

    :raises CodecError: not JSON, or something other than white space follows the value.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CodecError(f"syntax error at line 1 near: byte {error.start} is not UTF-8") from error
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        value, stop = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, start)
    except json.JSONDecodeError as error:
        near = text[error.pos :].split("\n", 1)[0]
        raise CodecError(f"syntax error at line {error.lineno} near: {near}") from error
    except ValueError as error:  # NaN, Infinity, a number of thousands of digits
        raise CodecError(f"syntax error at line 1 near: {error}") from error
    except RecursionError as error:
        raise CodecError("syntax error at line 1 near: nested too deeply") from error
    if text[stop:].strip(" \t\r\n"):
        raise CodecError(f"Parsed JSON included non-whitespace trailing characters: {text[stop:]}")
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX and _depth_exceeds(value, DEPTH_MAX):
        raise CodecError(f"syntax error at line 1 near: nested deeper than {DEPTH_MAX} levels")
    return value


def decode(schema: Schema, name: str, value: object) -> Message:
    """Return `value` as message `name`: known fields only, defaults filled in, doubles as floats, bytes as padded base64.

    :raises CodecError: not an object, a field of the wrong JSON type, or required fields are missing (all are named).
    """
    if not isinstance(value, dict):
        raise CodecError("Expecting a JSON object")
    missing: list[str] = []
    message = _message(schema, name, value, "", missing)
    if missing:
        raise CodecError("Missing required fields: " + ", ".join(missing))
    return message


def _depth_exceeds(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict | list):
                inner.extend(item.values() if isinstance(item, dict) else item)
        if not inner:
            return False
        level = inner
    return True


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _message(schema: Schema, name: str, value: dict[str, object], path: str, missing: list[str]) -> Message:
    result: Message = {}
    for key, field in schema.messages[name].items():
        given = value.get(key)
        if given is not None:
            converted = _field(schema, key, field, given, f"{path}{key}", missing)
            if converted is not None:
                result[key] = converted
        if key in result:
            continue
        if field.required:
            missing.append(f"{path}{key}")
        elif field.default is not None:
            result[key] = field.default
    return result


def _field(schema: Schema, key: str, field: Field, given: object, path: str, missing: list[str]) -> object:
    if not field.repeated:
        return _single(schema, key, field.kind, given, path, missing)
    if not isinstance(given, list):
        raise _unexpected(key, given)
    items = (_single(schema, key, field.kind, x, f"{path}[{i}]", missing) for i, x in enumerate(given))
    return [item for item in items if item is not None]


def _single(schema: Schema, key: str, kind: str, given: object, path: str, missing: list[str]) -> object:
    if kind == "any":
        return given
    if kind in schema.messages:
        if not isinstance(given, dict):
            raise _unexpected(key, given)
        return _message(schema, kind, given, f"{path}.", missing)
    if kind in schema.enums:
        if not isinstance(given, str):
            raise _unexpected(key, given)
        return given if given in schema.enums[kind] else None
    return _scalar(key, kind, given)


def _scalar(key: str, kind: str, given: object) -> object:
    if kind == "bool":
        if isinstance(given, bool):
            return given
        raise _unexpected(key, given)
    if kind == "string":
        if isinstance(given, str):
            return given
        raise _unexpected(key, given)
    if kind == "bytes":
        if isinstance(given, str):
            return _base64(key, given)
        raise _unexpected(key, given)
    return _number(key, kind, given)


def _number(key: str, kind: str, given: object) -> int | float:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise _unexpected(key, given)
    try:
        number = float(given) if kind == "double" else int(given)
    except (ValueError, OverflowError) as error:
        raise CodecError(f"Failed to convert '{given}' into a number for field '{key}'") from error
    if math.isnan(number) or (kind == "int" and not -(2**63) <= number < 2**63):
        raise CodecError(f"Failed to convert '{given}' into a number for field '{key}'")
    return number


def _base64(key: str, text: str) -> str:
    kept = []
    for character in text:
        if character == "=":
            break
        if character.isspace():
            continue
        if character not in _BASE64:
            raise CodecError(f"Failed to base64 decode bytes field '{key}': Invalid character '{character}'")
        kept.append(character)
    if len(kept) % 4 == 1:
        kept.pop()
    raw = base64.b64decode("".join(kept) + "=" * (-len(kept) % 4))
    return base64.b64encode(raw).decode("ascii")


def _unexpected(key: str, given: object) -> CodecError:
    return CodecError(f"Not expecting a JSON {_json_type(given)} for field '{key}'")


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object" if isinstance(value, dict) else "null"
