"""Build a manifest from the rows of a listing: sort, give addresses, cut into parts.

Rules kept here, for ever:

- Rows are laid out in path order. A file starts at a multiple of 64 B, from 1 MiB up at a multiple of 4 KiB. A file of at
  most 1/8 block crosses no block boundary. An empty file has an address but no bytes.
- A refresh (`previous`) keeps block size, PG count and the address of every unchanged file (equal path, size, mtime and
  token); new and changed ones begin at the next block boundary after all that this generation ever used, also where a file
  is gone. So an address is written once. A file that has no mark at all (no mtime, no token) counts as changed.
- The same rows give the same bytes (with the same zlib), and unchanged stretches the same parts.

Rows are taken in bounded chunks into buffers and numpy columns; nothing here costs a Python object a file that stays.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from stoker.executor.block import GRANULE_BYTES, block_bytes_for, pg_count_for
from stoker.executor.manifest_format import (
    ADDRESS_BYTES_MAX,
    BLOCK_COUNT_MAX,
    ENDS_MAX,
    FILE_BYTES_MAX,
    LARGE_FILE_ALIGNMENT,
    LARGE_FILE_BYTES,
    PART_RAW_BYTES_MAX,
    PART_ROWS_MASK,
    PART_ROWS_MAX,
    PART_ROWS_MIN,
    PARTS_MAX,
    PATH_RULE,
    ROWS_MAX,
    TOKEN_BYTES_MAX,
    UNCROSSED_SHARE,
    Columns,
    FileRow,
    Int64s,
    ManifestError,
    PartEntry,
    Root,
    Uint8s,
    Uint32s,
    digest_of,
    encode_part,
    encode_root,
    find_bad_path,
    hash_paths,
    padded,
    round_up,
    split_paths,
)
from stoker.executor.manifest_reader import Manifest

_CHUNK_ROWS = 2**16
_GATHER_ROWS = 2**12  # rows held as Python objects at a time; more fall out of the processor's cache
_EACH_SHARE = 64  # windows in which more than one file in 64 is special are laid out one by one


class BuiltManifest(NamedTuple):
    """A new manifest: its root, its parts by digest (all of them, also those that `previous` has), and its numbers."""

    root: bytes
    digest: str
    parts: dict[str, bytes]
    files: int
    bytes: int
    address_bytes: int
    block_bytes: int
    block_count: int
    pg_count: int


class _Rows(NamedTuple):
    """Rows in path order, before they have addresses."""

    paths: Uint8s
    path_starts: Int64s
    hashes: Uint32s
    sizes: Int64s
    mtimes: Int64s
    tokens: Uint8s
    token_starts: Int64s


class _Layout(NamedTuple):
    offsets: Int64s
    ends: tuple[int, ...]
    block_bytes: int
    pg_count: int


def build(
    rows: Iterable[FileRow],
    *,
    cluster: bytes,
    dataset_id: int,
    generation: int,
    version: int,
    slot_bytes: int,
    previous: Manifest | None = None,
) -> BuiltManifest:
    """Return the manifest of `rows`, which may come in any order and are consumed once.

    `slot_bytes` is an executor's capacity: it bounds the blocks an executor has to hold. With a `previous` version of the
    same generation this is a refresh, see the module; a `previous` of another generation is not looked at.

    :raises ManifestError: a path twice, a path that breaks PATH_RULE (its text names it), a size or token above its
        limit, or more addresses than a generation has.
    """
    assert len(cluster) == 16
    assert dataset_id > 0 and generation > 0 and version > 0
    if previous is not None:
        assert (previous.cluster, previous.dataset_id) == (cluster, dataset_id), "another dataset's manifest"
        assert previous.version < version
        previous = previous if previous.generation == generation else None
    gathered = _gather(rows)
    layout = _lay_out_first(gathered, slot_bytes) if previous is None else _lay_out_next(gathered, previous)
    offsets, ends, block_bytes, pg_count = layout
    columns = Columns(
        gathered.paths,
        gathered.path_starts,
        gathered.sizes,
        offsets,
        gathered.mtimes,
        gathered.tokens,
        gathered.token_starts,
    )
    parts: dict[str, bytes] = {}
    entries = list(_encode_parts(columns, gathered.hashes, parts))
    root = Root(
        cluster=cluster,
        dataset_id=dataset_id,
        generation=generation,
        version=version,
        block_bytes=block_bytes,
        file_count=len(gathered.sizes),
        total_bytes=int(gathered.sizes.sum()),
        address_bytes=ends[-1] if ends else 0,
        path_bytes=len(gathered.paths),
        token_bytes=len(gathered.tokens),
        pg_count=pg_count,
        ends=ends,
        parts=tuple(entries),
    )
    blob = encode_root(root)
    return BuiltManifest(
        blob,
        digest_of(blob),
        parts,
        root.file_count,
        root.total_bytes,
        root.address_bytes,
        block_bytes,
        root.block_count,
        pg_count,
    )


def _gather(rows: Iterable[FileRow]) -> _Rows:
    paths, tokens, hashes = bytearray(), bytearray(), array("I")
    sizes, mtimes, path_lengths, token_lengths = array("q"), array("q"), array("q"), array("q")
    is_sorted, last, total = True, b"", 0
    for chunk in _chunks(rows):
        names, chunk_sizes, chunk_mtimes, chunk_tokens = zip(*chunk, strict=True)
        joined, encoded = _encode_paths(names)
        is_sorted = is_sorted and last < encoded[0] and all(map(operator.lt, encoded, encoded[1:]))
        last = encoded[-1]
        paths += joined
        hashes.frombytes(hash_paths(encoded).tobytes())
        path_lengths.extend(array("q", map(len, encoded)))
        sizes.extend(_column(chunk, chunk_sizes, 0, FILE_BYTES_MAX))
        mtimes.extend(_column(chunk, chunk_mtimes, -(2**63), 2**63 - 1))
        token_lengths.extend(_column(chunk, tuple(map(len, chunk_tokens)), 0, TOKEN_BYTES_MAX))
        tokens += b"".join(chunk_tokens)
        total += sum(chunk_sizes)
        if len(sizes) > ROWS_MAX or total > ADDRESS_BYTES_MAX:
            raise ManifestError(
                f"a dataset has at most {ROWS_MAX} files and {ADDRESS_BYTES_MAX} bytes; "
                f"this one has {len(sizes)} files, {total} bytes or more"
            )
    gathered = _Rows(
        np.frombuffer(paths, dtype=np.uint8),
        _starts(path_lengths, 1),
        np.frombuffer(hashes, dtype=np.uint32),
        np.frombuffer(sizes, dtype=np.int64),
        np.frombuffer(mtimes, dtype=np.int64),
        np.frombuffer(tokens, dtype=np.uint8),
        _starts(token_lengths, 0),
    )
    return gathered if is_sorted else _sort(gathered)


def _column(chunk: list[FileRow], numbers: tuple[int, ...], low: int, high: int) -> array[int]:
    if min(numbers) >= low and max(numbers) <= high:
        return array("q", numbers)
    path, size, mtime_ns, token = chunk[next(i for i, n in enumerate(numbers) if not low <= n <= high)]
    raise ManifestError(
        f"{path!r} has size {size}, mtime {mtime_ns} ns and a version mark of {len(token)} bytes; allowed are "
        f"0 to {FILE_BYTES_MAX} bytes, 64-bit times, marks of at most {TOKEN_BYTES_MAX} bytes"
    )


def _chunks(rows: Iterable[FileRow]) -> Iterator[list[FileRow]]:
    source = iter(rows)
    while chunk := list(islice(source, _GATHER_ROWS)):
        yield chunk


def _encode_paths(names: tuple[str, ...]) -> tuple[bytes, list[bytes]]:
    try:
        joined = "\0".join((*names, "")).encode()
    except UnicodeEncodeError as error:
        bad = next(n for n in names if not _encodes(n))
        raise ManifestError(f"path {bad!r} is not valid UTF-8: {PATH_RULE}") from error
    encoded = split_paths(joined)
    if len(encoded) != len(names):
        bad = next(n for n in names if "\0" in n)
        raise ManifestError(f"path {bad!r} is not allowed in a dataset: {PATH_RULE}")
    starts = _starts(array("q", map(len, encoded)), 1)
    row = find_bad_path(np.frombuffer(joined, dtype=np.uint8), starts)
    if row >= 0:
        name = names[row]
        shown = repr(name if len(name) <= 200 else name[:200] + "...")
        raise ManifestError(f"path {shown} is not allowed in a dataset: {PATH_RULE}")
    return joined, encoded


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _starts(lengths: array[int], extra: int) -> Int64s:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(np.frombuffer(lengths, dtype=np.int64) + extra, out=starts[1:])
    return starts


def _sort(rows: _Rows) -> _Rows:
    order = path_order(rows.paths, rows.path_starts)
    lengths, token_lengths = np.diff(rows.path_starts)[order], np.diff(rows.token_starts)[order]
    return _Rows(
        take_ranges(rows.paths, rows.path_starts[order], lengths),
        _starts_of(lengths),
        rows.hashes[order],
        rows.sizes[order],
        rows.mtimes[order],
        take_ranges(rows.tokens, rows.token_starts[order], token_lengths),
        _starts_of(token_lengths),
    )


def _starts_of(lengths: Int64s) -> Int64s:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def path_order(paths: Uint8s, path_starts: Int64s) -> Int64s:
    """Return the rows in the order of their path bytes: eight bytes a round, each round only the rows still tied.

    :raises ManifestError: two rows have one path.
    """
    count = len(path_starts) - 1
    order = np.arange(count, dtype=np.int64)
    tied = np.arange(count, dtype=np.int64)  # places in `order` whose rows are not yet told apart
    group = np.zeros(count, dtype=np.int64)  # of each tied place, ascending
    depth = 0
    while len(tied):
        rows = order[tied]
        key = _eight_bytes(paths, path_starts[rows] + depth, path_starts[rows + 1])
        sorting = np.lexsort((key, group))
        order[tied] = rows[sorting]
        key, group = key[sorting], group[sorting]
        equal = (key[1:] == key[:-1]) & (group[1:] == group[:-1])
        is_tied = np.zeros(len(tied), dtype=bool)
        is_tied[1:] |= equal
        is_tied[:-1] |= equal
        ended = is_tied & ((key & np.uint64(0xFF)) == 0)
        if ended.any():
            row = int(order[tied[int(np.flatnonzero(ended)[0])]])
            path = bytes(paths[path_starts[row] : path_starts[row + 1] - 1]).decode()
            raise ManifestError(f"the path {path!r} was listed twice")
        first = np.ones(len(tied), dtype=bool)
        first[1:] = ~equal
        group = np.cumsum(first)[is_tied]
        tied = tied[is_tied]
        depth += 8
    return order


def _eight_bytes(text: Uint8s, starts: Int64s, ends: Int64s) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Return eight bytes of each row as one big-endian number; a row that ends before them gives zeros."""
    key = np.zeros(len(starts), dtype=np.uint64)
    for step in range(8):
        at = np.minimum(starts + step, ends - 1)  # the row's NUL at last
        key = (key << np.uint64(8)) | text[at].astype(np.uint64)
    return key


def take_ranges(data: Uint8s, starts: Int64s, lengths: Int64s) -> Uint8s:
    """Return data[starts[0]:starts[0]+lengths[0]], data[starts[1]:...], ... one after the other."""
    out_starts = _starts_of(lengths)
    out = np.empty(int(out_starts[-1]), dtype=np.uint8)
    for low in range(0, len(starts), _CHUNK_ROWS):
        part = slice(low, low + _CHUNK_ROWS)
        begin, end = int(out_starts[low]), int(out_starts[min(low + _CHUNK_ROWS, len(starts))])
        shift = np.repeat(starts[part] - out_starts[:-1][part], lengths[part])
        out[begin:end] = data[np.arange(begin, end, dtype=np.int64) + shift]
    return out


def _lay_out_first(rows: _Rows, slot_bytes: int) -> _Layout:
    estimate = int(padded(rows.sizes).sum())
    block_bytes = block_bytes_for(estimate, slot_bytes=slot_bytes)
    offsets, end = assign_offsets(rows.sizes, start=0, block_bytes=block_bytes)
    _check_address_space(end, block_bytes, 1)
    return _Layout(offsets, (end,) if end else (), block_bytes, pg_count_for(-(-end // block_bytes)))


def _lay_out_next(rows: _Rows, previous: Manifest) -> _Layout:
    block_bytes = previous.block_bytes
    kept = match_unchanged(
        rows.paths, rows.path_starts, rows.sizes, rows.mtimes, rows.tokens, rows.token_starts, previous
    )
    is_new = kept < 0
    offsets = np.empty(len(kept), dtype=np.int64)
    offsets[~is_new] = previous.offsets[kept[~is_new]]
    start = round_up(previous.address_bytes, block_bytes)
    offsets[is_new], end = assign_offsets(rows.sizes[is_new], start=start, block_bytes=block_bytes)
    ends = previous.ends
    if end > start:
        ends = (*ends, end)
    else:
        offsets[is_new] = previous.address_bytes  # they are all empty: nothing is appended
    _check_address_space(end, block_bytes, len(ends))
    return _Layout(offsets, ends, block_bytes, previous.pg_count)


def _check_address_space(end: int, block_bytes: int, end_count: int) -> None:
    if end > ADDRESS_BYTES_MAX or -(-end // block_bytes) > BLOCK_COUNT_MAX:
        raise ManifestError(
            f"the dataset would take {end} address bytes in blocks of {block_bytes}; a generation has at most "
            f"{ADDRESS_BYTES_MAX} bytes and {BLOCK_COUNT_MAX} blocks"
        )
    if end_count > ENDS_MAX:
        raise ManifestError(
            f"{ENDS_MAX} versions have added files to this generation: it is time for a new one"
        )


def assign_offsets(sizes: Int64s, *, start: int, block_bytes: int) -> tuple[Int64s, int]:
    """Return each file's offset, laid out in order from `start` (a block boundary), and the end of the last, padded.

    The address rule is told in the module. A window of plain small files costs a step a block; one in which files of
    1 MiB or of more than 1/8 block are frequent, a step a file.
    """
    offsets = np.empty(len(sizes), dtype=np.int64)
    uncrossed_max = block_bytes // UNCROSSED_SHARE
    special_min = min(LARGE_FILE_BYTES, uncrossed_max + 1)
    position = start
    for low in range(0, len(sizes), _CHUNK_ROWS):
        window = sizes[low : low + _CHUNK_ROWS]
        out = offsets[low : low + _CHUNK_ROWS]
        special = np.flatnonzero(window >= special_min)
        if len(special) * _EACH_SHARE > len(window):
            position = _place_each(window, out, position, block_bytes)
            continue
        done = 0
        for row in special.tolist():
            position = _place_run(window[done:row], out[done:row], position, block_bytes)
            position = _place_each(window[row : row + 1], out[row : row + 1], position, block_bytes)
            done = row + 1
        position = _place_run(window[done:], out[done:], position, block_bytes)
    return offsets, position


def _place_each(sizes: Int64s, out: Int64s, position: int, block_bytes: int) -> int:
    in_block, uncrossed_max = block_bytes - 1, block_bytes // UNCROSSED_SHARE
    placed = []
    for size in sizes.tolist():
        if size >= LARGE_FILE_BYTES:
            position = (position + (LARGE_FILE_ALIGNMENT - 1)) & -LARGE_FILE_ALIGNMENT
        if size <= uncrossed_max and (position & in_block) + size > block_bytes:
            position = (position + in_block) & -block_bytes
        placed.append(position)
        position = (position + size + (GRANULE_BYTES - 1)) & -GRANULE_BYTES
    out[:] = placed
    return position


def _place_run(sizes: Int64s, out: Int64s, position: int, block_bytes: int) -> int:
    """Place files that are all below 1 MiB and at most 1/8 block: as many as fit into each block at once."""
    before = _starts_of(padded(sizes))
    row, count = 0, len(sizes)
    while row < count:
        room = block_bytes - position % block_bytes
        fit = int(np.searchsorted(before, before[row] + room, side="right")) - 1
        out[row:fit] = before[row:fit] + (position - before[row])
        position += int(before[fit] - before[row])
        if fit < count:
            position = round_up(position, block_bytes)
        row = fit
    return position


def match_unchanged(
    paths: Uint8s,
    path_starts: Int64s,
    sizes: Int64s,
    mtimes: Int64s,
    tokens: Uint8s,
    token_starts: Int64s,
    previous: Manifest,
) -> Int64s:
    """Return for each row the row of `previous` with equal path, size, mtime and token, or -1.

    Both are walked side by side in path order, a chunk at a time. Rows without any mark (mtime 0, no token) never match:
    nobody can tell that their bytes are the same.
    """
    out = np.full(len(sizes), -1, dtype=np.int64)
    for low in range(0, len(sizes), _CHUNK_ROWS):
        high = min(low + _CHUNK_ROWS, len(sizes))
        names = split_paths(paths[path_starts[low] : path_starts[high]])
        out[low:high] = _same_paths(names, previous)
    rows = np.flatnonzero(out >= 0)
    old = out[rows]
    lengths, old_lengths = np.diff(token_starts)[rows], np.diff(previous.token_starts)[old]
    same = (
        (sizes[rows] == previous.sizes[old])
        & (mtimes[rows] == previous.mtimes[old])
        & (lengths == old_lengths)
    )
    same &= (lengths > 0) | (mtimes[rows] != 0)
    out[rows[~same]] = -1
    rows, old, lengths = rows[same], old[same], lengths[same]
    mine = take_ranges(tokens, token_starts[rows], lengths)
    theirs = take_ranges(previous.tokens, previous.token_starts[old].astype(np.int64), lengths)
    wrong = np.searchsorted(_starts_of(lengths), np.flatnonzero(mine != theirs), side="right") - 1
    out[rows[wrong]] = -1
    return out


def _same_paths(names: list[bytes], previous: Manifest) -> Int64s:
    found = np.full(len(names), -1, dtype=np.int64)
    start, stop = previous.lower_bound(names[0]), previous.lower_bound(names[-1] + b"\0")
    for low in range(start, stop, _CHUNK_ROWS):
        high = min(low + _CHUNK_ROWS, stop)
        rows = dict(zip(previous.path_bytes_between(low, high), range(low, high), strict=True))
        hits = np.fromiter((rows.get(name, -1) for name in names), dtype=np.int64, count=len(names))
        np.maximum(found, hits, out=found)
    return found


def _encode_parts(columns: Columns, hashes: Uint32s, parts: dict[str, bytes]) -> Iterator[PartEntry]:
    for start, stop in cut_parts(columns, hashes):
        blob = encode_part(columns, start, stop)
        digest = digest_of(blob)
        parts[digest] = blob
        yield PartEntry(
            digest,
            len(blob),
            stop - start,
            int(columns.path_starts[stop] - columns.path_starts[start]),
            int(columns.token_starts[stop] - columns.token_starts[start]),
        )
    if len(parts) > PARTS_MAX:
        raise ManifestError(f"the manifest has {len(parts)} parts; at most {PARTS_MAX} are allowed")


def cut_parts(columns: Columns, hashes: Uint32s) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of each part: cut after a row whose hash says so, within the limits of a part."""
    count = len(hashes)
    cuts = np.flatnonzero((hashes & np.uint32(PART_ROWS_MASK)) == 0) + 1
    raw_starts = columns.path_starts + columns.token_starts
    start = 0
    while start < count:
        most = int(np.searchsorted(raw_starts, raw_starts[start] + PART_RAW_BYTES_MAX, side="right")) - 1
        most = min(most, start + PART_ROWS_MAX, count)
        cut = int(np.searchsorted(cuts, start + PART_ROWS_MIN))
        stop = int(cuts[cut]) if cut < len(cuts) and cuts[cut] <= most else most
        yield start, stop
        start = stop
