"""Entries and values as bytes: what the journal and its snapshots hold.

An entry is the msgpack of `[kind, [field, field, ...]]`, its fields in the order in which its class declares them; values
inside one are arrays too. A field is told by its place, so none is ever moved or removed. One more at the end than this
program knows is ignored, one that is missing there takes its default: a rolling upgrade may add fields. A kind that it
does not know is an error: an entry skipped is a state that never was.

Owns no meaning: which entries there are stands in entries.py, what they change in catalog.py.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from collections.abc import Callable
from typing import Any

import msgpack

from stoker.framework.core import entries
from stoker.framework.core.entries import Entry

_SCALARS = (int, str, bytes, bool)


class CodecError(ValueError):
    """The bytes are no entry or state of ours."""


class NewerError(CodecError):
    """The bytes were written by a newer program."""


def encode_entry(entry: Entry) -> bytes:
    """Return the entry's bytes; equal entries give equal bytes."""
    return bytes(msgpack.packb((type(entry).__name__, entry), default=plain))


def decode_entry(data: bytes) -> Entry:
    """Return the entry of `data`.

    :raises CodecError: not an entry; or one of a kind that only a newer program knows (the message names it).
    """
    try:
        kind, fields = msgpack.unpackb(data, use_list=False)
        read = _READERS[kind]
    except Exception as error:  # msgpack raises a handful of unrelated types for bad bytes
        raise _explained(data) from error
    entry: Entry = read(fields)
    return entry


def plain(value: Any) -> list[Any]:
    """Return the fields of a dataclass value; for msgpack, which knows all our other values."""
    return [getattr(value, field.name) for field in dataclasses.fields(value)]


def named(value: Any) -> Any:
    """Return a value as dicts (of fields, by name), lists and scalars: for people, who read it as JSON."""
    names = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None)
    if names is not None:
        return {name: named(getattr(value, name)) for name in names}
    return [named(item) for item in value] if isinstance(value, tuple | list) else value


@functools.cache
def reader(cls: Any) -> Callable[[Any], Any]:
    """Return the function that makes a `cls` (a NamedTuple, or a dataclass) of its fields as msgpack brings them back.

    It raises CodecError where a field without a default is missing, or one is of another type.
    """
    read = field_reader(cls)
    if issubclass(cls, tuple):
        return lambda values: tuple.__new__(cls, read(values))
    return lambda values: cls(*read(values))


@functools.cache
def field_reader(cls: Any) -> Callable[[Any], tuple[Any, ...]]:
    """Return the function that makes the fields of a `cls`, each of its own type; it raises as that of `reader`."""
    shape = wire_shape(cls)
    converters = [(place, field) for place, field in enumerate(_fields(cls)) if field.convert is not None]

    def read(values: Any) -> tuple[Any, ...]:
        # The usual record says what this program knows, no more and no less: then one comparison checks all of it.
        if type(values) is not tuple or tuple(map(type, values)) != shape:
            values = _fitted(cls, values)
        for place, field in converters:
            if values[place] or not field.is_list:
                values = _converted(cls, values, place, field)
        return values  # type: ignore[no-any-return]

    return read


def wire_shape(cls: Any) -> tuple[type[Any], ...]:
    """Return the types of a `cls`' fields as msgpack brings them."""
    return tuple(field.wire for field in _fields(cls))


class _Field(typing.NamedTuple):
    name: str
    wire: type[Any]  # of the value that msgpack brings
    convert: Callable[[Any], Any] | None  # to the field's own type; None: it is that
    is_list: bool  # of values that `convert` makes
    default: Any  # _NONE: there is none


_NONE = object()


@functools.cache
def _fields(cls: Any) -> list[_Field]:
    hints = typing.get_type_hints(cls)
    if issubclass(cls, tuple):
        defaults: dict[str, Any] = cls._field_defaults
    else:
        has_default = [f for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING]
        defaults = {field.name: field.default for field in has_default}
    return [_Field(name, *_codec(hint), defaults.get(name, _NONE)) for name, hint in hints.items()]


def _codec(hint: Any) -> tuple[type[Any], Callable[[Any], Any] | None, bool]:
    """Return what msgpack brings for a value of type `hint`, how to make that the value, and whether it is a list."""
    if hint in _SCALARS:
        return hint, None, False
    if typing.get_origin(hint) is tuple:
        (inner, *_) = arguments = typing.get_args(hint)
        if hasattr(inner, "_fields"):
            assert arguments[1:] == (Ellipsis,), hint
            read = reader(inner)
            return tuple, lambda items: tuple(map(read, items)), True
        return tuple, None, True
    if issubclass(hint, enum.Enum):
        return str, hint, False
    return tuple, reader(hint), False


def _fitted(cls: Any, raw: Any) -> tuple[Any, ...]:
    """Return the values that a `cls` of this program takes, of one that another program wrote."""
    if not isinstance(raw, tuple | list):
        raise CodecError(f"{cls.__name__}: expected its fields, not {type(raw).__name__}")
    fields = _fields(cls)
    values = [_as_tuples(value) for value in raw[: len(fields)]]
    for field in fields[len(values) :]:
        if field.default is _NONE:
            raise CodecError(f"{cls.__name__}: field {field.name} is missing")
        values.append(field.default)
    for field, value in zip(fields, values, strict=True):
        if type(value) is not field.wire and value is not field.default:
            raise CodecError(
                f"{cls.__name__}.{field.name} is {type(value).__name__}, not {field.wire.__name__}"
            )
    return tuple(values)


def _converted(cls: type[Any], values: tuple[Any, ...], place: int, field: _Field) -> tuple[Any, ...]:
    assert field.convert is not None
    try:
        return (*values[:place], field.convert(values[place]), *values[place + 1 :])
    except CodecError:
        raise
    except ValueError as error:
        raise CodecError(f"{cls.__name__}.{field.name}: {error}") from error


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, tuple | list) else value


def _explained(data: bytes) -> CodecError:
    """Return what is wrong with a record that is not `[kind, fields]` with a kind that is known."""
    try:
        raw = msgpack.unpackb(data)
    except Exception as error:  # as in decode_entry
        return CodecError(f"a journal record is not msgpack: {error}")
    if not (isinstance(raw, list) and len(raw) == 2 and isinstance(raw[0], str)):
        return CodecError("a journal record is not [kind, fields]")
    return NewerError(
        f"the journal holds an entry of kind {raw[0]!r}, which this version of Stoker does not know: "
        "it was written by a newer one; run that"
    )


_READERS = {cls.__name__: reader(cls) for cls in typing.get_args(entries.Entry)}
