"""Entries and state as plain values and as bytes, by name: what the journal and its snapshots hold.

An entry is the msgpack of `[kind, {field: value}]`; nested values are maps, tuples are lists. A field that this
program does not know is ignored, a missing one takes its default, so a rolling upgrade may add fields. A kind that it
does not know is an error: an entry skipped is a state that never was.

Owns no meaning: which entries there are stands in entries.py, what they change in catalog.py.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

from stoker.framework.core import entries
from stoker.framework.core.entries import Entry

_T = TypeVar("_T")
_KINDS: dict[str, type[Any]] = {cls.__name__: cls for cls in typing.get_args(entries.Entry)}


class CodecError(ValueError):
    """The bytes are no entry or state of ours, or of a newer program's."""


def encode_entry(entry: Entry) -> bytes:
    """Return the entry's bytes; equal entries give equal bytes."""
    return bytes(msgpack.packb([type(entry).__name__, to_plain(entry)], use_bin_type=True))


def decode_entry(data: bytes) -> Entry:
    """Return the entry of `data`.

    :raises CodecError: not an entry; or one of a kind that only a newer program knows (the message names it).
    """
    try:
        raw = msgpack.unpackb(data, raw=False)
    except Exception as error:  # msgpack raises a handful of unrelated types for bad bytes
        raise CodecError(f"a journal record is not msgpack: {error}") from error
    if not (isinstance(raw, list) and len(raw) == 2 and isinstance(raw[0], str) and isinstance(raw[1], dict)):
        raise CodecError("a journal record is not [kind, fields]")
    cls = _KINDS.get(raw[0])
    if cls is None:
        raise CodecError(
            f"the journal holds an entry of kind {raw[0]!r}, which this version of Stoker does not know: "
            "it was written by a newer one; run that"
        )
    return typing.cast(Entry, from_plain(cls, raw[1]))


def to_plain(value: Any) -> Any:
    """Return `value` (a dataclass, tuple, enum or scalar) as dicts, lists and scalars."""
    cls: Any = type(value)
    if hasattr(cls, "__dataclass_fields__"):
        return {name: to_plain(getattr(value, name)) for name in _names(cls)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value


def from_plain(cls: type[_T], raw: Any) -> _T:
    """Return the `cls` (a dataclass) whose `to_plain` is `raw`; unknown fields are ignored.

    :raises CodecError: a field without a default is missing, or one has the wrong shape.
    """
    if not isinstance(raw, dict):
        raise CodecError(f"{cls.__name__}: expected a map, not {type(raw).__name__}")
    converters: dict[str, Callable[[Any], Any]] = _converters(typing.cast(Any, cls))
    names = _names(typing.cast(Any, cls))
    try:
        fields = raw if raw.keys() <= names.keys() else {name: raw[name] for name in names if name in raw}
        if converters:
            fields = {**fields, **{n: c(fields[n]) for n, c in converters.items() if n in fields}}
        return cls(**fields)
    except (TypeError, ValueError) as error:
        if isinstance(error, CodecError):
            raise
        raise CodecError(f"{cls.__name__}: {error}") from error


@functools.cache
def _names(cls: Any) -> dict[str, None]:
    return {field.name: None for field in dataclasses.fields(cls)}


@functools.cache
def _converters(cls: Any) -> dict[str, Callable[[Any], Any]]:
    """Return what turns plain values into the fields' types, for the fields that need it."""
    hints = typing.get_type_hints(cls)
    found = {name: _converter(hints[name]) for name in _names(cls)}
    return {name: convert for name, convert in found.items() if convert is not None}


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    """Return what turns a plain value into one of type `hint`; None: it is plain already."""
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _tuple_converter(typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        (inner,) = (a for a in typing.get_args(hint) if a is not type(None))
        convert = _converter(inner)
        return None if convert is None else lambda value: None if value is None else convert(value)
    if dataclasses.is_dataclass(hint):
        return functools.partial(from_plain, typing.cast(type[Any], hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint
    assert hint in (int, str, bytes, bool), f"no codec for {hint}"
    return None


def _tuple_converter(arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        convert = _converter(arguments[0])
        return tuple if convert is None else lambda value: tuple(map(convert, value))
    assert all(_converter(a) is None for a in arguments), "mixed tuples hold scalars only"
    return tuple
