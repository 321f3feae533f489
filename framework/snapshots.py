"""Snapshots: the whole catalog as the journal keeps it. Encoded and decoded in native threads, beside the hub.

Such a thread shares the interpreter with the hub, which gets its turn whenever the thread is back in Python: so no call
in here works on more than ROWS_MAX rows at once. The bytes are one msgpack map, as if it were packed in one go.
"""

from __future__ import annotations

from typing import Any

import msgpack

from stoker.framework.collector import without_collector
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import CodecError

ROWS_MAX = 1_000  # packed or unpacked without a turn for others: some milliseconds
# What is long in a snapshot.
TABLES = frozenset({"slots", "launches", "volumes", "datasets", "base_rules", "jobs"})


def encode_snapshot(catalog: Catalog) -> bytes:
    """Return the bytes of a catalog that nobody changes meanwhile."""
    state = catalog.snapshot()
    packer = msgpack.Packer()
    pieces = [packer.pack_map_header(len(state))]
    for name, value in state.items():
        pieces.append(packer.pack(name))
        if name not in TABLES:
            pieces.append(packer.pack(value))
            continue
        pieces.append(packer.pack_array_header(len(value)))
        for start in range(0, len(value), ROWS_MAX):
            pieces.append(b"".join(map(packer.pack, value[start : start + ROWS_MAX])))
    return b"".join(pieces)


def decode_snapshot(data: bytes) -> Catalog:
    """Return the catalog whose snapshot is `data`.

    :raises CodecError: not a snapshot, or one of a newer program.
    """
    with without_collector():
        return Catalog.restore(_unpacked(data))


def _unpacked(data: bytes) -> dict[Any, Any]:
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=max(1, len(data)))
    try:
        unpacker.feed(data)
        state: dict[Any, Any] = {}
        for _ in range(unpacker.read_map_header()):
            name = unpacker.unpack()
            if name in TABLES:
                state[name] = [unpacker.unpack() for _ in range(unpacker.read_array_header())]
            else:
                state[name] = unpacker.unpack()
    except Exception as error:  # msgpack raises a handful of unrelated types for bad bytes
        raise CodecError(f"the snapshot is not msgpack: {error!r}") from error
    if unpacker.tell() != len(data):
        raise CodecError(f"the snapshot has {len(data) - unpacker.tell()} bytes too many")
    return state
