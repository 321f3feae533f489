"""What the keeper tells fillers, and what their answers name: values only. The messages are in stoker.executor.filler."""

from __future__ import annotations

from typing import Any

from stoker.executor.block import GRANULE_BYTES
from stoker.executor.core.filling import FileFailed
from stoker.executor.core.homes import Source, peers_message, sources
from stoker.executor.datasets import DatasetView
from stoker.executor.fillers import Job
from stoker.executor.messages import SlotAddress


def dataset_message(view: DatasetView, version: int, manifest_path: str) -> dict[str, Any]:
    return {
        "t": "dataset",
        "id": view.key[0],
        "generation": view.key[1],
        "version": version,
        "source": view.assignment.source,
        "options": view.assignment.options,
        "manifest": manifest_path,
    }


def fill_message(
    job: Job, version: int, found: list[Source], *, cluster: bytes, urgent: bool
) -> dict[str, Any]:
    return _of_block(job, "fill", version) | {
        "ranges": job.ranges,
        "peers": peers_message(found),
        "cluster": cluster,
        "urgent": urgent,
    }


def checksum_message(job: Job, version: int) -> dict[str, Any]:
    return _of_block(job, "checksum", version)


def _of_block(job: Job, kind: str, version: int) -> dict[str, Any]:
    name = job.block.name
    return {
        "t": kind,
        "job": job.number,
        "id": name.dataset_id,
        "generation": name.generation,
        "version": version,
        "index": name.block_index,
    }


def sources_of(view: DatasetView, block_index: int, slots: tuple[SlotAddress, ...]) -> list[Source]:
    """Return whom to ask for a block before the under store, best first."""
    spare = int(view.spares[block_index % len(view.spares)])
    return sources(view.table, slots, position=view.position, block_index=block_index, spare=spare)


def named(job: Job, failed: list[Any]) -> list[FileFailed]:
    """Return the files that a job could not fetch, with their places in the block."""
    manifest = job.manifest
    origin = job.block.name.block_index * manifest.block_bytes
    length = job.block.state.data_bytes
    failures = []
    for row, path, code, message in failed:
        offset, size = manifest.extent(row)
        start = min(max(offset - origin, 0), length)
        stop = min(max(offset + size - origin, 0), length)
        stop = min(-(-stop // GRANULE_BYTES) * GRANULE_BYTES, length)
        for low, high in job.owned.within(start, stop):
            failures.append(FileFailed(row, path, code, message, low, high))
    return failures
