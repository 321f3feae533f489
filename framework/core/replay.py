"""Replay: many records into a catalog. What `decode_entry` and `Catalog.apply` come to record by record, in a third of the time.

A new leader and every follower do nothing else, so records are decoded together, and entries of the kinds that a journal is
made of (Catalog's APPLY_MANY) are checked and applied kind by kind, as bare tuples, for as long as none of another kind
comes. Where something is not as this program writes it, or does not follow from what is before it, they go the slow way, one
by one: that says which one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgpack

from stoker.framework.core.catalog import APPLY_MANY, Catalog
from stoker.framework.core.codec import CodecError, decode_entry, wire_shape

REPLAYED_MAX = 8_192  # records of one call: some 20 ms
TOGETHER = 512  # records that are decoded and checked at once: with more they leave the cache

_Pairs = tuple[tuple[Any, Any], ...]  # (kind, fields)


def replay(catalog: Catalog, records: Sequence[bytes], first_index: int) -> None:
    """Apply `records`, the first of which has `first_index`.

    :raises CodecError: one is no entry, or does not follow from what is before it. Those before it are applied then.
    :raises NewerError: one was written by a newer program.
    """
    assert len(records) <= REPLAYED_MAX
    try:
        for start in range(0, len(records), TOGETHER):
            some = records[start : start + TOGETHER]
            pairs = _decoded(some)
            if pairs is None:
                _one_by_one(catalog, some, first_index + start)
            else:
                _together(catalog, pairs, some, first_index + start)
    finally:
        catalog.settle()


def _together(catalog: Catalog, pairs: _Pairs, records: Sequence[bytes], first_index: int) -> None:
    began = 0
    groups: dict[str, list[Any]] = {kind: [] for kind in _SHAPES}
    for place, (kind, fields) in enumerate(pairs):
        try:
            groups[kind].append(fields)
        except (KeyError, TypeError):  # another kind, or none
            _by_kinds(catalog, groups, records[began:place], first_index + began)
            _one_by_one(catalog, records[place : place + 1], first_index + place)
            began = place + 1
    _by_kinds(catalog, groups, records[began:], first_index + began)


def _by_kinds(
    catalog: Catalog, groups: dict[str, list[Any]], records: Sequence[bytes], first_index: int
) -> None:
    """Apply `groups`, and empty them; they are `records`, which begin with `first_index`."""
    if not records:
        return
    if all(map(_has_shape, groups.values(), _SHAPES.values())) and catalog.fit(*groups.values()):
        for group, apply in zip(groups.values(), APPLY_MANY.values(), strict=True):
            if group:
                apply(catalog, group)
    else:
        _one_by_one(catalog, records, first_index)
    for group in groups.values():
        group.clear()


def _one_by_one(catalog: Catalog, records: Sequence[bytes], first_index: int) -> None:
    for index, record in enumerate(records, first_index):
        try:
            catalog.apply(decode_entry(record))
        except CodecError as error:
            raise type(error)(f"record {index}: {error}") from error
        except (AssertionError, KeyError) as error:
            raise CodecError(f"record {index} does not follow from what is before it: {error!r}") from error


def _decoded(records: Sequence[bytes]) -> _Pairs | None:
    """Return the records, each a pair of whatever it holds; None: one of them is something else."""
    data = b"".join((b"\xdc", len(records).to_bytes(2, "big"), *records))  # one array of them all
    try:
        pairs: Any = msgpack.unpackb(data, use_list=False)
    except (ValueError, msgpack.UnpackException):
        return None
    is_plain = set(map(type, pairs)) == {tuple} and set(map(len, pairs)) == {2}
    return pairs if is_plain else None


def _has_shape(group: list[Any], shape: list[type[Any]]) -> bool:
    """Return whether all of `group` are tuples of fields of just the right types."""
    return not group or (
        set(map(type, group)) == {tuple}
        and set(map(len, group)) == {len(shape)}
        and list(map(type, chain.from_iterable(group))) == shape * len(group)
    )


_SHAPES = {kind.__name__: list(wire_shape(kind)) for kind in APPLY_MANY}
