"""Replay: many records into a catalog. What `decode_entry` and `Catalog.apply` come to record by record, in half the time.

A new leader and every follower do nothing else, so three things are spared: a decoder for each record, the entry's own
type where `Catalog` reads it by place, and all calls in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from stoker.framework.core.catalog import APPLY, BY_PLACE, Catalog
from stoker.framework.core.codec import CodecError, decode_entry, field_reader, plain_shape, reader

REPLAYED_MAX = 128  # records of one call: a fraction of a millisecond, if none of them is long


def replay(catalog: Catalog, records: Sequence[bytes], first_index: int) -> None:
    """Apply `records`, the first of which has `first_index`.

    :raises CodecError: one is no entry, or does not follow from what is before it. Some of them are applied then.
    :raises NewerError: one was written by a newer program.
    """
    assert len(records) <= REPLAYED_MAX
    data = b"".join(records)
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=max(1, len(data)))
    unpacker.feed(data)
    place, steps = -1, _STEPS
    try:
        for place, (kind, fields) in enumerate(unpacker):  # noqa: B007 -- also looked at when it failed
            shape, read, apply = steps[kind]
            if type(fields) is tuple and tuple(map(type, fields)) == shape:
                apply(catalog, fields)
            else:
                apply(catalog, read(fields))
    except Exception as error:  # msgpack raises a handful of unrelated types for bad bytes
        _blame(records, first_index)
        if isinstance(error, AssertionError | KeyError):
            index = first_index + place
            raise CodecError(f"record {index} does not follow from what is before it: {error!r}") from error
        raise
    if place + 1 != len(records) or unpacker.tell() != len(data):
        _blame(records, first_index)
        raise CodecError(f"records {first_index} to {first_index + len(records)} are not one entry each")


def _blame(records: Sequence[bytes], first_index: int) -> None:
    """:raises CodecError, NewerError: for the first record that is no entry by itself."""
    for index, record in enumerate(records, first_index):
        try:
            decode_entry(record)
        except CodecError as error:
            raise type(error)(f"record {index}: {error}") from error


_Apply = Callable[[Catalog, Any], None]
_Read = Callable[[Any], tuple[Any, ...]]


def _step(kind: Any) -> tuple[tuple[type[Any], ...] | None, _Read, _Apply]:
    """Return the shape of fields that are applied as they are, what makes the others fit, and what applies them."""
    if kind in BY_PLACE:
        return plain_shape(kind), field_reader(kind), APPLY[kind]
    return None, reader(kind), APPLY[kind]


_STEPS = {kind.__name__: _step(kind) for kind in APPLY}
