"""One leadership: everything that is thrown away together when it ends. Built from a journal that was just taken.

Owns the loop with catalog and fleet, the connection to Mesos, the listings and the mapped manifests, and the order in
which they begin and end: replay, then LeadershipBegan durable, then Mesos; at the end the loop stops first, so that
nothing is decided any more while the rest goes down. Leaving Mesos is never a TEARDOWN.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgpack
from gevent.threadpool import ThreadPool

from stoker.framework.clock import Clock
from stoker.framework.config import Config
from stoker.framework.core import actions as a
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import CodecError, decode_entry, encode_entry
from stoker.framework.core.entries import LaunchPlanned
from stoker.framework.core.events import LeadershipBegan, Stamp
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.scheduler import decide
from stoker.framework.errors import Fatal
from stoker.framework.journaling import WORKERS_MAX, JournalThread, retire, run_in
from stoker.framework.listings import Listings
from stoker.framework.loop import Core, Loop
from stoker.framework.manifests import Manifests
from stoker.framework.mesos_shell import Driver, MesosShell
from stoker.framework.metrics import Metrics
from stoker.framework.model import EXECUTOR_OVERHEAD_BYTES
from stoker.framework.translate import Json, framework_to_mesos, launch_environment
from stoker.zk.errors import Corrupt, TooNew, Unavailable

SEED_BYTES = 32
SNAPSHOT_BYTES_MAX = 1024 * 1024 * 1024

log = logging.getLogger(__name__)

MakeDriver = Callable[
    [Any, Json], Driver
]  # (pymesos Scheduler, FrameworkInfo) -> a driver that is not started


class Leadership:
    """See the module. `begin` makes one; `loop.ended` is set when it is over; `close` tidies up."""

    def __init__(
        self, config: Config, journal: JournalThread, make_driver: MakeDriver, *, url: str, metrics: Metrics
    ) -> None:
        self._config = config
        self._journal = journal
        self._url = url
        recovered, records = journal.lead()
        self._workers = ThreadPool(WORKERS_MAX)
        catalog, wall_ms = run_in(self._workers, _replay, recovered.snapshot, records)
        self._catalog: Catalog = catalog
        self._epoch = recovered.epoch
        metrics.epoch.set(recovered.epoch)
        next_index = records[-1][0] + 1 if records else recovered.snapshot_index
        log.info("replayed epoch=%d next_index=%d records=%d", recovered.epoch, next_index, len(records))
        settings = config.decision_settings()
        core = Core(catalog, Fleet(settings), settings, decide, encode_entry, _encode_snapshot)
        self.loop = Loop(
            core,
            journal,
            self._perform,
            next_index=next_index,
            clock=Clock(not_before_ms=wall_ms),
            metrics=metrics,
            workers=self._workers,
        )
        try:
            self.manifests = Manifests(os.path.join(config.scratch, "manifests"), journal, self._workers)
            self._listings = Listings(
                self.loop,
                journal,
                self.manifests,
                cluster=lambda: catalog.cluster,
                directory=os.path.join(config.scratch, "listings"),
                live_digests=lambda: self.loop.read(lambda catalog, _: catalog.manifest_digests()),
                workers=self._workers,
                metrics=metrics,
            )
        except OSError as error:  # a full disk, as a rule the journal's
            retire(self._workers)
            raise Unavailable(
                f"cannot make its scratch directory {config.scratch}: {error.strerror}"
            ) from error
        self._mesos = MesosShell(
            lambda scheduler: make_driver(scheduler, self._framework()),
            self.loop.put,
            spawn=self.loop.spawn,
            launch_values=self._launch_values,
            on_error=self._mesos_refused,
            metrics=metrics,
        )

    def begin(self) -> None:
        """Take the state over, then go to Mesos. :raises NotLeading: leadership ended already, see `loop.ended`."""
        self.loop.start()
        began = LeadershipBegan(
            self._epoch, self._config.fleet, uuid.uuid4().bytes, self._config.name, os.urandom(SEED_BYTES)
        )
        self.loop.put_and_wait(began)
        self._warn_of_ignored_fleet()
        self._listings.sweep()
        self._mesos.start()
        log.info(
            "leading epoch=%d cluster=%s framework_id=%s datasets=%d jobs=%d",
            self._epoch,
            self._catalog.cluster.hex(),
            self._catalog.framework_id or "new",
            len(self._catalog.datasets),
            len(self._catalog.jobs),
        )

    def close(self) -> None:
        """End it, however far it came; idempotent."""
        self.loop.stop()
        self._mesos.stop()
        self._listings.close()
        self.manifests.close()
        with contextlib.suppress(OSError):  # not empty: it holds what is not ours
            os.rmdir(self._config.scratch)
        retire(self._workers)

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Return the URLs of all schedulers, the leader's first."""
        return (self._url,)

    def leader_view(self) -> dict[str, Any]:
        """Return what GET /v1/leader says."""

        def view(catalog: Catalog, _: Fleet) -> dict[str, Any]:
            return {
                "leader": self._url,
                "self": self._url,
                "epoch": catalog.epoch,
                "framework_id": catalog.framework_id,
                "cluster": catalog.cluster.hex(),
                "name": catalog.name,
                "master": self._config.master,
                "state": "leading",
                "schedulers": list(self.schedulers),
            }

        return self.loop.read(view)

    def _perform(self, stamp: Stamp, action: a.Action) -> None:
        match action:
            case a.StartListing():
                self._listings.start(action)
            case a.StopListing(dataset_id):
                self._listings.stop(dataset_id)
            case a.ForgetManifest(digest):
                self._listings.forget_manifest(digest)
            case _:
                self._mesos.perform(stamp, action)

    def _framework(self) -> Json:
        config, fleet = self._config, self._catalog.fleet
        return framework_to_mesos(
            name=config.name,
            user=config.framework_user,
            role=fleet.role if fleet else config.role,
            principal=config.principal,
            failover_timeout_ms=config.failover_timeout_ms,
            gpu_agents=config.gpu_agents,
            webui_url=self._url,
            framework_id=self._catalog.framework_id,
        )

    def _launch_values(self, launch: LaunchPlanned) -> tuple[int, str, Mapping[str, str]]:
        environment = launch_environment(
            launch,
            cluster=self._catalog.cluster,
            schedulers=self.schedulers,
            variables=self._config.executor_variables(),
            socket_dir=self._config.socket_dir,
            fillers=self._config.fillers,
        )
        return launch.mem_bytes + EXECUTOR_OVERHEAD_BYTES, self._config.command, environment

    def _mesos_refused(self, message: str) -> None:
        known = self._catalog.framework_id or "none yet"
        self.loop.stop(Fatal(f"Mesos refused this framework (id {known}): {message}"))

    def _warn_of_ignored_fleet(self) -> None:
        kept, told = self._catalog.fleet, self._config.fleet
        if kept is not None and kept != told:
            log.warning(
                "the fleet of the journal stands (instances=%d mem_bytes=%d role=%s), the options (instances=%d "
                "mem_bytes=%d role=%s) are for a new cluster: change it with `stoker fleet set`",
                kept.instances, kept.mem_bytes, kept.role, told.instances, told.mem_bytes, told.role,
            )  # fmt: skip


def _replay(snapshot: bytes | None, records: Iterable[tuple[int, bytes]]) -> tuple[Catalog, int]:
    """Return the catalog that the journal holds, and its newest time. Runs in a native thread: it can take seconds.

    :raises Corrupt: a record or snapshot that is none. :raises TooNew: written by a newer program.
    """
    at = "the snapshot"
    try:
        catalog = Catalog() if snapshot is None else Catalog.restore(_decode_snapshot(snapshot))
        for index, record in records:
            at = f"record {index}"
            catalog.apply(decode_entry(record))
    except CodecError as error:
        kind = TooNew if "newer" in str(error) else Corrupt
        raise kind(f"{at}: {error}") from error
    except (AssertionError, KeyError) as error:
        raise Corrupt(f"{at} does not follow from what is before it: {error!r}") from error
    return catalog, catalog.wall_ms


def _encode_snapshot(catalog: Catalog) -> bytes:
    return bytes(msgpack.packb(catalog.snapshot(), use_bin_type=True))


def _decode_snapshot(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, max_buffer_size=SNAPSHOT_BYTES_MAX)
    except Exception as error:  # msgpack raises a handful of unrelated types for bad bytes
        raise CodecError(f"the snapshot is not msgpack: {error}") from error
