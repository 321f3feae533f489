"""The keeper: the process that answers to Mesos and the leader, and decides what its executor holds.

It starts the data server and the fillers, and they end together: a child that dies, or hangs, ends the keeper (the framework
launches anew), a keeper that dies ends its children (their channels end). The driver and the scheduler are told what it does:

    Mesos LAUNCH  ->  TASK_STARTING  ->  the data server listens, the tier's size is known  ->  TASK_RUNNING, heartbeats
    an answer "stale", KILL, SHUTDOWN, SIGTERM  ->  a last status, exit 0;   a child lost, a port taken  ->  TASK_FAILED, exit 1

Runs on greenlets in a monkey-patched process (`__main__` patches). One event loop, so no locks: what follows from an event is
done before the next is looked at.
"""

from __future__ import annotations

import base64
import functools
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import gevent
from gevent.event import AsyncResult, Event

from stoker.executor.block import disk_blocks_max
from stoker.executor.children import Child
from stoker.executor.config import KeeperConfig
from stoker.executor.core.cache import Cache, DatasetKey
from stoker.executor.datasets import DatasetView, Manifests
from stoker.executor.disk import Disk, Opened, open_directory
from stoker.executor.disk_calls import DiskCalls
from stoker.executor.disk_tier import FILE_CALLS_MAX, STEP_STUCK_MS, DiskTier
from stoker.executor.entries import files_open_max
from stoker.executor.errors import DirectoryHeld, DirectoryRefused
from stoker.executor.fillers import ENVIRONMENT, Fillers
from stoker.executor.fills import Fills
from stoker.executor.holdings import MEM, SSD, Holdings, TierAccount
from stoker.executor.machine import (
    available_bytes,
    cgroup_bytes,
    mesos_mem_bytes,
    share_memory,
)
from stoker.executor.messages import (
    HEARTBEAT_INTERVAL_MS,
    HEARTBEAT_INTERVAL_MS_MAX,
    UNKNOWN_MAX,
    DiskReport,
    Heartbeat,
    HeartbeatAnswer,
    decode_summons,
)
from stoker.executor.process import boot_id, raise_descriptor_limit
from stoker.executor.report import Reporter
from stoker.executor.residency import Residents
from stoker.executor.saving import Saver
from stoker.executor.schedulers import Schedulers
from stoker.executor.sockets import loopback_trouble, prepare_directory
from stoker.executor.store import MemTier, NoTier
from stoker.executor.wants import Wants

TICK_MS = 250  # between looks at fills that wait for their turn, or for a retry

log = logging.getLogger(__name__)

TIER_BYTES_MIN = 16 * 1024 * 1024
DESCRIPTORS_RESERVED = 5_120  # of a process' limit, for what are no blocks: connections for the most part
DESCRIPTORS_OTHER = 256  # of those, for what are no connections
LAUNCH_TIMEOUT_S = 60.0  # an agent that restarts may have dropped the task: nobody else ends us then
LISTEN_TIMEOUT_S = 20.0
DIRECTORY_PATIENCE_MS = 15_000  # with an executor that has the SSD tier's directory yet, and is about to end
DIRECTORY_ASK_MS = 200
DIRECTORY_OPEN_MS = 60_000  # for its disk to answer: an index of the largest tier is read in two seconds
FLUSH_TIMEOUT_MS = 2_000
HURRY_INTERVAL_MS = 100  # the least time between two heartbeats
SERVER, FILLER = "stoker.executor.server", "stoker.executor.filler"
# With a child that does not answer. A filler may wait for a disk where it loads a library, and others serve its misses meanwhile.
PATIENCE_MS = {SERVER: 15_000, FILLER: 60_000}


class StatusDriver(Protocol):
    """The part of Mesos' executor driver that the keeper uses."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def sendStatusUpdate(self, status: Mapping[str, Any]) -> None: ...

    def flush(self, timeout_ms: int) -> bool: ...


class End(Exception):
    """Why the executor ends: an exit code, the task's last state, and a sentence."""

    def __init__(self, code: int, state: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.state = state


class Keeper:
    """One executor. `make_driver(keeper)` gives Mesos' driver, for which the keeper is the pymesos-style Executor."""

    def __init__(
        self,
        config: KeeperConfig,
        make_driver: Callable[[Keeper], StatusDriver],
        make_disk: Callable[[], Disk] = Disk,
        *,
        launch_timeout_s: float = LAUNCH_TIMEOUT_S,
        patience_ms: Mapping[str, int] = PATIENCE_MS,
    ) -> None:
        self._config = config
        self._launch_timeout_s = launch_timeout_s
        self._patience_ms = patience_ms
        self._make_disk = make_disk
        self._incarnation = secrets.randbits(63) | 1
        self._driver = make_driver(self)
        self._end: AsyncResult = AsyncResult()  # an End
        self._mem_bytes: AsyncResult = (
            AsyncResult()
        )  # what Mesos gave, or None; known when it launches the task
        self._listening: AsyncResult = AsyncResult()
        self._is_launched = Event()
        self._is_built = Event()
        self._last_word = Event()  # the last status was given to the driver
        self._hurry = Event()
        self._schedulers = Schedulers(config.schedulers)
        self._datasets: dict[DatasetKey, DatasetView] = {}
        self._executor_info: Mapping[str, Any] = {}
        self._epoch_seen = config.epoch
        self._sequence = 0
        self._boot_id = boot_id()
        self._children: list[Child] = []
        self._disk: DiskTier | None = None

    def run(self) -> int:
        """Run until the end; return the exit code."""
        gevent.signal_handler(signal.SIGTERM, self.end, End(0, "TASK_KILLED", "SIGTERM"))
        gevent.signal_handler(signal.SIGINT, self.end, End(0, "TASK_KILLED", "SIGINT"))
        self._driver.start()
        work = gevent.spawn(self._work)
        end = self._end.get()
        log.info("ending: %s", end)
        work.kill()
        for child in self._children:
            child.end()
        self._schedulers.close()
        if self._is_launched.is_set():
            self._send_status(end.state, str(end))
            self._last_word.set()
            self._driver.flush(FLUSH_TIMEOUT_MS)
        self._driver.stop()
        return int(end.code)

    def end(self, end: End) -> None:
        """End the executor; the first reason counts."""
        if not self._end.ready():
            self._end.set(end)

    # --- pymesos' Executor interface, called by the driver

    def registered(self, driver: Any, executorInfo: Any, frameworkInfo: Any, slaveInfo: Any) -> None:
        self._executor_info = executorInfo or {}
        log.info("registered with agent %s", (slaveInfo or {}).get("hostname", ""))

    def reregistered(self, driver: Any, slaveInfo: Any) -> None:
        log.info("registered again with the agent")

    def disconnected(self, driver: Any) -> None:
        log.warning("the agent is gone; it may come back")

    def launchTask(self, driver: Any, task: Any) -> None:
        task_id = task["task_id"]["value"]
        if task_id != self._config.task_id:
            status = {"task_id": {"value": task_id}, "state": "TASK_FAILED"}
            driver.sendStatusUpdate(
                status | {"message": f"this executor is for the task {self._config.task_id}"}
            )
            return
        self._is_launched.set()
        self._send_status("TASK_STARTING", "")
        if not self._mem_bytes.ready():
            self._mem_bytes.set(mesos_mem_bytes(self._executor_info, task))

    def launchTaskGroup(self, driver: Any, task_infos: Any) -> None:
        log.error("a task group was launched here, which this executor does not take")

    def killTask(self, driver: Any, taskId: Any) -> None:
        if taskId["value"] == self._config.task_id:
            self.end(End(0, "TASK_KILLED", "killed by the framework"))

    def frameworkMessage(self, driver: Any, message: Any) -> None:
        """Learn where the leader is: sent by a leader that does not hear us."""
        try:
            summons = decode_summons(base64.b64decode(message))
        except (ValueError, TypeError) as error:
            log.warning("a framework message is ignored: %s", error)
            return
        if summons.epoch < self._epoch_seen:
            self._schedulers.refuse("a message", summons.epoch, self._epoch_seen)
            return
        log.info("the leader of epoch %d calls: schedulers %s", summons.epoch, ", ".join(summons.schedulers))
        self._epoch_seen = summons.epoch
        self._schedulers.learn(summons.schedulers)
        self._hurry.set()

    def shutdown(self, driver: Any) -> None:
        self.end(End(0, "TASK_KILLED", "shut down by the agent"))
        self._last_word.wait(FLUSH_TIMEOUT_MS / 1000)  # when this returns the driver flushes and stops

    def error(self, driver: Any, message: Any) -> None:
        self.end(End(1, "TASK_FAILED", f"the driver failed: {message}"))

    # --- life

    def _work(self) -> None:
        """Everything but the end of it."""
        try:
            config = self._config
            prepare_directory(config.socket_dir)
            self._build(self._wait_launched())
            port = self._listening.get(timeout=LISTEN_TIMEOUT_S)
            if not self._fillers.wait_ready(LISTEN_TIMEOUT_S):
                raise End(1, "TASK_FAILED", "the fillers did not start in time")
            self._send_status("TASK_RUNNING", "")
            log.info(
                "serving on %s:%d, MEM tier of %d bytes, SSD tier of %d bytes",
                config.host,
                port,
                self._caches[MEM].capacity_bytes,
                self._caches[SSD].capacity_bytes,
            )
            if trouble := loopback_trouble(config.host, config.schedulers):
                log.warning("%s", trouble)
            self._spawn(self._tick)
            self._beat(port)
        except End as end:
            self.end(end)
        except gevent.Timeout:
            self.end(End(1, "TASK_FAILED", "the data server did not listen in time"))
        except Exception as error:
            log.exception("the keeper failed")
            self.end(End(1, "TASK_FAILED", f"{type(error).__name__}: {error}"))

    def _wait_launched(self) -> int | None:
        """Return the memory that Mesos gives the task. :raises End: there is none."""
        try:
            mem_bytes: int | None = self._mem_bytes.get(timeout=self._launch_timeout_s)
        except gevent.Timeout:
            text = f"the agent launched no task here within {self._launch_timeout_s:g} s"
            raise End(1, "TASK_FAILED", text) from None
        return mem_bytes

    def _open_disk(self) -> Opened | None:
        """Take over the SSD tier's directory; None: there is to be none."""
        config = self._config
        if not config.disk_bytes:
            return None
        deadline_ms = _now_ms() + DIRECTORY_PATIENCE_MS
        opening = functools.partial(
            open_directory, disk=self._make_disk(), boot_id=self._boot_id, asked_bytes=config.disk_bytes
        )
        calls = DiskCalls(1)
        while True:
            try:
                opened: Opened = calls.run(
                    opening, config.disk_dir, config.cluster, patience_ms=DIRECTORY_OPEN_MS
                )
                break
            except DirectoryHeld as error:
                if _now_ms() > deadline_ms:
                    raise End(1, "TASK_FAILED", f"the SSD tier: {error}") from error
                log.info("%s: it is waited for", error)
                gevent.sleep(DIRECTORY_ASK_MS / 1000)
            except (DirectoryRefused, OSError) as error:
                raise End(1, "TASK_FAILED", f"the SSD tier: {error}") from error
        log.info(
            "the SSD tier in %s has %d of %d bytes for blocks",
            config.disk_dir,
            opened.capacity_bytes,
            config.disk_bytes,
        )
        return opened

    def _build(self, mesos_bytes: int | None) -> None:
        config = self._config
        tier, scratch, fill_job_bytes, connections_max = share_memory(
            config.mem_bytes,
            filler_count=config.filler_count,
            mesos_bytes=mesos_bytes,
            available_bytes=available_bytes(),
            cgroup_bytes=cgroup_bytes(),
            disk_bytes=config.disk_bytes,
        )
        if tier < min(config.mem_bytes, TIER_BYTES_MIN):
            raise End(
                1,
                "TASK_FAILED",
                f"only {tier} bytes of memory are to be had for a tier of {config.mem_bytes}",
            )
        if tier < config.mem_bytes:
            log.warning(
                "the tier has %d bytes, not %d: Mesos or the machine give no more", tier, config.mem_bytes
            )
        descriptors = raise_descriptor_limit()
        reserved = min(DESCRIPTORS_RESERVED, descriptors // 2)
        disk_files = files_open_max(descriptors) if config.disk_bytes else 0  # in the server
        server = self._start_child(SERVER, self._from_server)
        self._server = server.outbox
        self._fillers = Fillers(
            lambda: self._start_child(FILLER, self._from_filler),
            config.filler_count,
            fill_job_bytes=fill_job_bytes,
        )
        opened = self._open_disk()  # the children start meanwhile
        accounts: dict[str, TierAccount] = {
            MEM: TierAccount(Cache(tier, descriptors - reserved - disk_files), MemTier(config.cluster)),
            SSD: TierAccount(Cache(0, 0), NoTier()),
        }
        if opened is not None:
            self._disk = DiskTier(
                config.disk_dir,
                config.cluster,
                opened,
                disk=self._make_disk(),
                file_calls=DiskCalls(FILE_CALLS_MAX),
                step_calls=DiskCalls(1, stuck_ms=STEP_STUCK_MS),
                spawn=self._spawn,
                now_ms=_now_ms,
            )
            blocks_max = disk_blocks_max(config.disk_bytes)
            accounts[SSD] = TierAccount(Cache(opened.capacity_bytes, blocks_max), self._disk, is_disk=True)
            self._spawn(self._disk.run)
        self._caches = {name: account.cache for name, account in accounts.items()}
        self._manifests = Manifests(
            os.path.join(config.sandbox, "manifests"), self._schedulers.fetch_manifest, self._spawn
        )
        self._holdings = Holdings(
            accounts,
            server.outbox,
            scratch_bytes=scratch,
            on_change=lambda: self._fills.room_came(),
        )
        if self._disk is not None:
            self._holdings.restore(self._disk.restored, _now_ms())
        self._fills = Fills(
            cluster=config.cluster,
            holdings=self._holdings,
            manifests=self._manifests,
            fillers=self._fillers,
            datasets=self._datasets,
            now_ms=_now_ms,
            on_settled=self._hurry.set,
        )
        self._saver = Saver(
            holdings=self._holdings, fills=self._fills, datasets=self._datasets, now_ms=_now_ms
        )
        self._wants = Wants(
            server=server.outbox,
            holdings=self._holdings,
            fills=self._fills,
            manifests=self._manifests,
            datasets=self._datasets,
            spawn=self._spawn,
            now_ms=_now_ms,
        )
        self._residents = Residents(
            cluster=config.cluster,
            slot_id=config.slot_id,
            datasets=self._datasets,
            holdings=self._holdings,
            fills=self._fills,
            manifests=self._manifests,
            server=server.outbox,
            spawn=self._spawn,
            now_ms=_now_ms,
            on_planned=self._hurry.set,
        )
        self._reporter = Reporter(self._holdings)
        self._server.put(
            {
                "t": "start",
                "cluster": config.cluster,
                "launch": config.launch_id,
                "incarnation": self._incarnation,
                "host": config.host,
                "port": config.port,
                "path": config.socket_path,
                "abstract": self._abstract_socket,
                "parent": os.getpid(),
                "disk": "" if self._disk is None else self._disk.blocks_directory,
                "disk_files": disk_files,
                "awaited": self._holdings.stored_keys(),
                "limits": {"connections_max": min(connections_max, reserved - DESCRIPTORS_OTHER)},
            }
        )
        self._is_built.set()

    @property
    def _abstract_socket(self) -> str:
        return f"{self._config.abstract_socket}-{self._incarnation:x}"

    def _start_child(self, module: str, on_message: Callable[[dict[str, Any], list[int]], None]) -> Child:
        child = Child(
            module,
            on_message=on_message,
            on_end=lambda reason: self.end(End(1, "TASK_FAILED", reason)),
            environment=ENVIRONMENT if module == FILLER else None,
        )
        self._children.append(child)
        return child

    def _send_status(self, state: str, message: str) -> None:
        status: dict[str, Any] = {"task_id": {"value": self._config.task_id}, "state": state}
        if message:
            status["message"] = message
        self._driver.sendStatusUpdate(status)

    def _spawn(self, work: Callable[..., None], *arguments: Any) -> gevent.Greenlet:
        """Run `work` on a greenlet; if it fails that is our mistake, and the end."""
        greenlet = gevent.spawn(work, *arguments)
        greenlet.link_exception(
            lambda g: self.end(End(1, "TASK_FAILED", f"the keeper failed: {g.exception!r}"))
        )
        return greenlet

    def _from_filler(self, message: dict[str, Any], fds: list[int]) -> None:
        self._is_built.wait()
        self._fills.on_message(message, fds)

    # --- the data server

    def _from_server(self, message: dict[str, Any], fds: list[int]) -> None:
        assert not fds, "the data server sends no descriptors"
        kind = message["t"]
        if kind == "want":
            self._wants.take(message)
        elif kind == "unwant":
            self._wants.cancel(message["want"])
        elif kind == "cleared":
            self._residents.cleared(message["id"], message["generation"])
        elif kind == "gone":
            self._holdings.server_gone(message["holding"])
        elif kind == "used":
            self._take_used(message)
        elif kind == "corrupt":
            self._quarantine(message)
        elif kind == "broken":
            self._broken(message)
        elif kind == "listening":
            self._listening.set(message["port"])
        elif kind == "failed":
            self.end(End(1, "TASK_FAILED", message["message"]))
        else:
            raise AssertionError(f"the data server said {kind!r}, which this keeper does not know")

    def _take_used(self, message: dict[str, Any]) -> None:
        now_ms = _now_ms()
        for holding, count in message["holdings"]:
            for cache in self._caches.values():
                cache.use(holding, count, now_ms)
        for dataset_id, generation, count in message["served"]:
            view = self._datasets.get((dataset_id, generation))
            if view is not None:
                view.served_bytes += count
                view.changes += 1
        lent = set(message["lent"])
        for cache in self._caches.values():
            for held in cache.held.values():
                held.lent = held.holding in lent

    def _quarantine(self, message: dict[str, Any]) -> None:
        """A block's bytes do not match their checksums: it is dropped, and fetched again where it is wanted."""
        holding = message["holding"]
        block, stored = self._holdings.get(holding), self._holdings.stored_by(holding)
        if stored is not None:
            log.error("file %s is damaged in pages %s: dropped", stored.file.name, message["pages"][:10])
            self._holdings.drop_stored(stored, _now_ms(), is_damaged=True)
        if block is None or block.is_leaving:
            return
        log.error("block %s is damaged in pages %s: dropped", block.name, message["pages"][:10])
        self._fills.let_go(block, "it was damaged", is_damaged=True)
        if block.name.block_index in block.view.mine_set:
            block.view.todo.append(block.name.block_index)
        self._fills.pump()

    def _broken(self, message: dict[str, Any]) -> None:
        """The data server could not read a block's file."""
        block = self._holdings.get(message["holding"])
        if block is not None:
            self._fills.file_failed(block, message["text"])
            self._fills.pump()

    def _tick(self) -> None:
        while True:
            gevent.sleep(TICK_MS / 1000)
            for child in self._children:
                # However long the tick took: a keeper that was stopped, or whose machine slept, blames nobody.
                child.watch(TICK_MS, self._patience_ms[child.module])
            self._fills.tick()
            self._saver.tick()
            self._manifests.sweep()

    # --- heartbeats

    def _beat(self, port: int) -> None:
        whole = True
        while True:
            interval_ms = HEARTBEAT_INTERVAL_MS
            self._hurry.clear()
            answer = self._schedulers.heartbeat(self._heartbeat(port, whole=whole))
            if answer is not None and answer.epoch < self._epoch_seen:
                self._schedulers.refuse("an answer", answer.epoch, self._epoch_seen)
                answer = None
            if answer is not None and answer.sequence == self._sequence and answer.status == "ok":
                self._reporter.acknowledge()
                whole = False
            if answer is not None:
                whole |= answer.want_whole
                self._take_answer(answer)
                interval_ms = min(max(answer.interval_ms, HURRY_INTERVAL_MS), HEARTBEAT_INTERVAL_MS_MAX)
            gevent.sleep(HURRY_INTERVAL_MS / 1000)
            self._hurry.wait((interval_ms - HURRY_INTERVAL_MS) / 1000)

    def _heartbeat(self, port: int, *, whole: bool) -> Heartbeat:
        config, cache = self._config, self._caches[MEM]
        self._sequence += 1
        return Heartbeat(
            cluster=config.cluster,
            slot_id=config.slot_id,
            launch_id=config.launch_id,
            incarnation=self._incarnation,
            secret=config.secret,
            sequence=self._sequence,
            whole=whole,
            epoch_seen=self._epoch_seen,
            assignment_version=self._in_epoch(self._residents.version),
            host=config.host,
            port=port,
            socket_path=config.socket_path,
            abstract_socket=self._abstract_socket,
            boot_id=self._boot_id or socket.gethostname(),
            pid=os.getpid(),
            capacity_bytes=cache.capacity_bytes,
            used_bytes=cache.used_bytes,
            lent_bytes=cache.leaving_bytes,
            datasets=self._reporter.build(self._datasets.values(), whole=whole),
            cleared_version=self._in_epoch(self._residents.cleared_version),
            disk=self._disk_report(),
            unknown=tuple(self._residents.unknown()[:UNKNOWN_MAX]),
            refused_count=self._schedulers.refused_count,
        )

    def _disk_report(self) -> DiskReport | None:
        if self._disk is None:
            return None
        cache = self._caches[SSD]
        return DiskReport(
            capacity_bytes=cache.capacity_bytes,
            used_bytes=cache.used_bytes,
            lent_bytes=cache.leaving_bytes,
            unknown_bytes=self._holdings.stored_bytes(self._residents.unknown()),
            is_stuck=self._disk.is_stuck,
            error_count=self._disk.error_count,
            last_error=self._disk.last_error,
        )

    def _in_epoch(self, version: tuple[int, int]) -> int:
        """Return the version of an assignment in the epoch that is reported; 0: it is of an earlier one."""
        return version[1] if version[0] == self._epoch_seen else 0

    def _take_answer(self, answer: HeartbeatAnswer) -> None:
        assert answer.epoch >= self._epoch_seen, "checked before"
        self._epoch_seen = answer.epoch
        if answer.status == "stale":
            raise End(0, "TASK_FINISHED", "the leader has no place for this launch any more")
        assignment = answer.assignment
        if answer.status == "ok" and assignment is not None and assignment.epoch >= self._epoch_seen:
            if self._residents.apply(assignment):
                self._hurry.set()
        if answer.status == "ok" and answer.removed:
            self._residents.forget(answer.removed)


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
