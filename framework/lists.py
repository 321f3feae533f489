"""Lists that may be long, made and encoded in slices, so that the loop and other requests get turns in between.

Each slice is read as all reads are, so nobody is told what is not durable; rows are of their slice's moment, and what is gone
when its turn comes is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from stoker.framework.clock import now_ms
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.fleet import Fleet
from stoker.framework.turns import rest

SLICE_MS = 20  # of making rows; one more may be begun before it is over

MakeRow = Callable[[Catalog, Fleet, Any], dict[str, Any] | None]


def encode_rows(
    read: Callable[[Callable[[Catalog, Fleet], int]], int],
    name: str,
    keys: Sequence[Any],
    make_row: MakeRow,
    after: str | None,
) -> bytes:
    """Return `{name: rows, "next": after}` as JSON, without the latter for None; `make_row` returns None for a key that is gone.

    `read` is Loop's.

    :raises NotLeading: leadership ended meanwhile.
    """
    rows: list[str] = []
    done = 0

    def make_some(catalog: Catalog, fleet: Fleet) -> int:
        began_ms = now_ms()
        for at in range(done, len(keys)):
            row = make_row(catalog, fleet, keys[at])
            if row is not None:
                rows.append(json.dumps(row))
            if now_ms() - began_ms >= SLICE_MS:
                return at + 1
        return len(keys)

    while done < len(keys):
        done = read(make_some)
        if done < len(keys):
            rest()
    tail = "" if after is None else f', "next": {json.dumps(after)}'
    return f"{{{json.dumps(name)}: [{', '.join(rows)}]{tail}}}".encode()
