"""A filler: the process of an executor that reads under stores and other executors, and writes into blocks.

Started by the keeper as `python -m stoker.executor.filler FD`, FD being its end of a channel. Uses threads, is never
monkey-patched (fsspec's loop would not survive it), and decides nothing: which block, which ranges and from whom is
the keeper's to say. What it learns of a block's bytes goes to the keeper as "filled" messages, see fill_job.py.

    keeper -> filler   limits, first; dataset, forget, fill + the block's descriptor, checksum + the block's descriptor,
                       hurry, cancel; ping
    filler -> keeper   ready, once; opened {key}, for each dataset; filled ..., then one done per fill or checksum; pong

A store is opened as soon as its dataset is heard of: the libraries behind it take longer to load than a miss should take.

At most FILLER_JOBS_MAX fills are under way; each holds at most `fill_job_bytes` in buffers, which the keeper derives from what
Mesos gave. Buffers are mapped and given back one by one (fillers.ENVIRONMENT), so that what was freed is free. The main thread
only receives and answers pings, so the keeper never waits for us to read while we wait for it. When the channel ends, so does the process, at
once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stoker.executor import wire
from stoker.executor.block import block_layout
from stoker.executor.channel import Channel
from stoker.executor.core.filling import FILLER_JOBS_MAX
from stoker.executor.errors import ChannelError, FileBroken
from stoker.executor.fill_job import FillJob, FillOrder, PeerAddress, Turns
from stoker.executor.fill_progress import checksum_unknown_pages
from stoker.executor.manifest import Manifest, map_manifest
from stoker.executor.peer import PATIENCE_MS, URGENT_PATIENCE_MS, Hung, Peer
from stoker.executor.process import die_with_parent, raise_descriptor_limit, start_logging
from stoker.executor.under_store import (
    READING_BYTES_MAX,
    ReadFailure,
    UnderStore,
    UnderStoreError,
    one_line,
    open_under_store,
)
from stoker.executor.wire import Failure

STORES_MAX = 256  # kept open; the keeper bounds the dataset versions
OPENERS_MAX = 4  # stores opened at once, ahead of their first fill

log = logging.getLogger(__name__)


class Dataset:
    """A dataset version: its manifest and its store, opened when first needed, by whichever thread needs them."""

    def __init__(
        self, message: Mapping[str, Any], open_store: Callable[[str, dict[str, str]], UnderStore]
    ) -> None:
        self._source: str = message["source"]
        self._options: dict[str, str] = dict(message["options"])
        self._manifest_path: str = message["manifest"]
        self._open_store = open_store
        self._lock = threading.Lock()
        self._manifest: Manifest | None = None

    def manifest(self) -> Manifest:
        """:raises ManifestError, OSError: it cannot be mapped: the keeper's mistake."""
        with self._lock:
            if self._manifest is None:
                self._manifest = map_manifest(self._manifest_path)
            return self._manifest

    def store(self) -> UnderStore:
        """:raises UnderStoreError: see open_under_store."""
        return self._open_store(self._source, self._options)


class _Opened:
    """One store, once somebody has opened it. Whoever opens it holds the lock: a store that hangs holds up no other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.store: UnderStore | None = None


class Stores:
    """Opened under stores, one a source and its options, however many dataset versions share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: OrderedDict[tuple[str, str], _Opened] = OrderedDict()

    def open(self, source: str, options: dict[str, str]) -> UnderStore:
        """:raises UnderStoreError: see open_under_store."""
        key = (source, json.dumps(options, sort_keys=True))
        with self._lock:
            opened = self._stores.setdefault(key, _Opened())
            self._stores.move_to_end(key)
            while len(self._stores) > STORES_MAX:
                self._stores.popitem(last=False)  # fills under way keep theirs
        with opened.lock:
            if opened.store is None:
                opened.store = open_under_store(source, options)
            return opened.store


class Filler:
    """See the module. `run` in the main thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stores = Stores()
        self._turns = Turns()
        self._fill_job_bytes = READING_BYTES_MAX
        self._hung = Hung()
        self._datasets: dict[tuple[int, int, int], Dataset] = {}
        self._lock = threading.Lock()
        self._jobs: dict[Any, FillJob | None] = {}  # accepted and not done; None: not begun, or a checksum
        self._cancelled: set[Any] = set()
        self._hurried: dict[Any, list[list[int]]] = {}  # of accepted jobs, in case they have not begun
        self._pool = ThreadPoolExecutor(FILLER_JOBS_MAX, thread_name_prefix="fill")
        self._openers = ThreadPoolExecutor(OPENERS_MAX, thread_name_prefix="open")

    def run(self) -> None:
        """Serve until the keeper is gone; only returns then.

        :raises ChannelError: the keeper sent what is not a message.
        """
        try:
            self._channel.send({"t": "ready"})
        except OSError:
            return  # it is gone already
        while (received := self._channel.receive()) is not None:
            message, fds = received
            self._accept(message, fds)

    def _accept(self, message: dict[str, Any], fds: list[int]) -> None:
        match message.get("t"):
            case "limits":
                self._fill_job_bytes = message["fill_job_bytes"]
            case "dataset":
                self._learn(message)
            case "forget":
                self._datasets.pop(tuple(message["key"]), None)  # jobs under way keep theirs
            case "ping":
                self._answer_ping()
            case "cancel":
                self._cancel(message["job"])
            case "hurry":
                self._hurry(message["job"], message["ranges"])
            case "fill":
                self._submit(self._fill, message, fds)
            case "checksum":
                self._submit(self._checksum, message, fds)
            case kind:
                log.warning("unknown message %r from the keeper is ignored", kind)
                for fd in fds:
                    os.close(fd)

    def _answer_ping(self) -> None:
        # By the thread that receives, however long the others wait for their stores. The keeper always receives.
        try:
            self._channel.send({"t": "pong"})
        except OSError:
            os._exit(0)  # the keeper is gone

    def _learn(self, message: dict[str, Any]) -> None:
        key = (message["id"], message["generation"], message["version"])
        dataset = self._datasets[key] = Dataset(message, self._stores.open)
        self._openers.submit(self._open, dataset, key)

    def _open(self, dataset: Dataset, key: tuple[int, int, int]) -> None:
        """Open a dataset's store ahead of its first fill, which is told if that fails."""
        try:
            dataset.store()
        except UnderStoreError as error:
            log.warning("dataset %d: %s", key[0], one_line(error))
        except BaseException:
            log.exception("opening the store of dataset %d", key[0])
            os._exit(1)
        try:
            self._channel.send({"t": "opened", "key": list(key)})
        except OSError:
            os._exit(0)  # the keeper is gone

    def _submit(
        self, work: Callable[[Dataset, dict[str, Any], int], None], message: dict[str, Any], fds: list[int]
    ) -> None:
        if len(fds) != 1:
            raise ChannelError(f"a {message['t']} message with {len(fds)} descriptors; exactly 1 is needed")
        with self._lock:
            # More than twice as many waiting is the keeper's mistake.
            assert len(self._jobs) < 3 * FILLER_JOBS_MAX, "the keeper sends more fills than it may"
            assert message["job"] not in self._jobs, message["job"]
            self._jobs[message["job"]] = None
        dataset = self._datasets[message["id"], message["generation"], message["version"]]
        self._pool.submit(self._work, work, dataset, message, fds[0])

    def _work(
        self,
        work: Callable[[Dataset, dict[str, Any], int], None],
        dataset: Dataset,
        message: dict[str, Any],
        fd: int,
    ) -> None:
        """A job's thread. Our own mistakes end the process: the keeper then ends the executor."""
        try:
            work(dataset, message, fd)
        except OSError as error:
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                os._exit(0)  # the keeper is gone
            log.exception("job %s", message["job"])
            os._exit(1)
        except BaseException:
            log.exception("job %s", message["job"])
            os._exit(1)
        finally:
            os.close(fd)

    def _fill(self, dataset: Dataset, message: dict[str, Any], fd: int) -> None:
        job_id = message["job"]
        job = FillJob(
            _order(message),
            dataset.manifest(),
            store=dataset.store,
            connect=lambda address: _connect(address, message),
            hung=self._hung,
            turns=self._turns,
            fd=fd,
            send=self._channel.send,
            held_bytes_max=self._fill_job_bytes,
        )
        with self._lock:
            self._jobs[job_id] = job
            if job_id in self._cancelled:
                job.cancel()
            job.hurry([(start, stop) for start, stop in self._hurried.get(job_id, [])])
        broken = ""
        try:
            job.run()
        except UnderStoreError as error:
            job.fail_all(ReadFailure(Failure.UNDER_STORE, one_line(error)))
        except FileBroken as error:
            job.cancel()  # what is being read for it
            broken = str(error)
        self._done(job_id, job.failures.as_list(), broken)

    def _checksum(self, dataset: Dataset, message: dict[str, Any], fd: int) -> None:
        """Compute the checksums of the pages that have none yet: what several fills wrote together."""
        length = dataset.manifest().block_length(message["index"])
        try:
            pages = checksum_unknown_pages(fd, block_layout(length))
        except FileBroken as error:
            self._done(message["job"], [], str(error))
            return
        told = {"extents": [], "filled_bytes": 0, "copied_bytes": 0, "crc_pages": pages}
        self._channel.send({"t": "filled", "job": message["job"], **told})
        self._done(message["job"], [])

    def _done(self, job_id: Any, failed: list[list[Any]], broken: str = "") -> None:
        with self._lock:
            del self._jobs[job_id]
            self._cancelled.discard(job_id)
            self._hurried.pop(job_id, None)
        self._channel.send({"t": "done", "job": job_id, "failed": failed, "error": broken})

    def _hurry(self, job_id: Any, ranges: list[list[int]]) -> None:
        with self._lock:
            if job_id not in self._jobs:
                return  # its "done" is on the way
            job = self._jobs[job_id]
            if job is None:
                self._hurried.setdefault(job_id, []).extend(ranges)
            else:
                job.hurry([(start, stop) for start, stop in ranges])

    def _cancel(self, job_id: Any) -> None:
        with self._lock:
            if job_id not in self._jobs:
                return  # its "done" is on the way
            self._cancelled.add(job_id)
            job = self._jobs[job_id]
            if job is not None:
                job.cancel()


def _order(message: Mapping[str, Any]) -> FillOrder:
    peers = tuple(
        PeerAddress(p["host"], p["port"], p["launch_id"], p["incarnation"], bool(p.get("local_only", True)))
        for p in message["peers"]
    )
    ranges = tuple((start, stop) for start, stop in message["ranges"])
    return FillOrder(message["job"], message["index"], ranges, peers, bool(message.get("urgent", False)))


def _connect(address: PeerAddress, message: Mapping[str, Any]) -> Peer:
    """:raises PeerError: see Peer."""
    hello = wire.Hello(
        message["cluster"],
        address.launch_id,
        address.incarnation,
        message["id"],
        message["generation"],
        message["version"],
        wire.Caller.EXECUTOR,
    )
    patience_ms = URGENT_PATIENCE_MS if message.get("urgent") else PATIENCE_MS
    return Peer(address.host, address.port, hello, patience_ms=patience_ms)


def main(argv: list[str]) -> int:
    start_logging("filler")
    if len(argv) != 2 or not argv[1].isdigit():
        print("stoker.executor.filler is started by the keeper (python -m stoker.executor)", file=sys.stderr)
        return 2
    die_with_parent(0)
    raise_descriptor_limit()
    channel = Channel.from_fd(int(argv[1]))
    try:
        Filler(channel).run()
    except ChannelError as error:
        log.error("the keeper is not understood: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stderr.flush()
    os._exit(code)  # threads of fills may still be waiting for their stores
