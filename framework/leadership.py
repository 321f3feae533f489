"""One leadership: everything that is thrown away together when it ends. Built from a journal that was just taken.

Owns the loop with catalog and fleet, the connection to Mesos, the listings and the mapped manifests, and the order in
which they begin and end: replay, then LeadershipBegan durable, then Mesos. At the end the loop stops first, so that
nothing is decided any more, and the stream to Mesos is closed with it, so that nothing more is sent (`stop`); then the
journal may go to the next leader, while the rest goes down (`close`). Leaving Mesos is never a TEARDOWN.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from typing import Any

import gevent
from gevent.threadpool import ThreadPool

from stoker.framework.bundles import Bundles, bundle_command, uri
from stoker.framework.clock import Clock
from stoker.framework.config import Config
from stoker.framework.core import actions as a
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import encode_entry
from stoker.framework.core.entries import LaunchPlanned
from stoker.framework.core.events import LeadershipBegan, Stamp
from stoker.framework.core.explanations import about_newer_journal, about_silence, attention, unsatisfied
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.programs import parse_program
from stoker.framework.core.scheduler import decide
from stoker.framework.farewell import Farewell
from stoker.framework.following import Replica, check_belongs, role_note, take_over
from stoker.framework.journaling import WORKERS_MAX, LeaderJournal, retire
from stoker.framework.listings import Listings
from stoker.framework.loop import Core, Loop
from stoker.framework.manifests import Manifests
from stoker.framework.mesos_shell import Driver, MesosShell
from stoker.framework.metrics import Metrics
from stoker.framework.model import overhead_bytes
from stoker.framework.probes import Probes
from stoker.framework.scratch import Scratch
from stoker.framework.snapshots import encode_snapshot
from stoker.framework.summons import Summons
from stoker.framework.translate import (
    Json,
    LaunchValues,
    container_to_mesos,
    framework_to_mesos,
    launch_environment,
    python_command,
)
from stoker.zk.errors import Unavailable

SEED_BYTES = 32
NEWER_LOOK_INTERVAL_MS = 1_000
UNFIT_LOOK_INTERVAL_MS = 2_000

log = logging.getLogger(__name__)

MakeDriver = Callable[
    [Any, Json], Driver
]  # (pymesos Scheduler, FrameworkInfo) -> a driver that is not started


class Leadership:
    """See the module. `begin` makes one; `loop.ended` is set when it is over; `stop` and `close` tidy up.

    `replica` is what this scheduler followed so far. `schedulers` returns all schedulers' URLs, the leader's first.
    """

    def __init__(
        self,
        config: Config,
        journal: LeaderJournal,
        make_driver: MakeDriver,
        *,
        url: str,
        metrics: Metrics,
        replica: Replica | None = None,
        schedulers: Callable[[], tuple[str, ...]] | None = None,
        port: int = 0,
        bundles: Bundles | None = None,
    ) -> None:
        """:raises JournalError, Fatal: there is none, and the journal can only be closed."""
        self._config = config
        self._journal = journal
        self._url = url
        self._metrics = metrics
        self._schedulers = schedulers
        self._bundles = bundles or Bundles()
        self._scratch_path = config.scratch(port)
        self._scratch: Scratch | None = None
        self._workers = ThreadPool(WORKERS_MAX)
        try:
            self._build(make_driver, replica)
        except BaseException:
            if self._scratch is not None:
                self._scratch.close()
            retire(self._workers)
            raise

    def _build(self, make_driver: MakeDriver, replica: Replica | None) -> None:
        config, metrics = self._config, self._metrics
        recovered, replica = take_over(self._journal, replica, self._workers)
        self._catalog = catalog = replica.catalog
        check_belongs(catalog, config)
        if note := role_note(catalog, config):
            log.warning("%s", note)
        self._epoch = recovered.epoch
        metrics.epoch.set(recovered.epoch)
        settings = config.decision_settings()
        self.loop = Loop(
            Core(catalog, Fleet(settings), settings, decide, encode_entry, encode_snapshot),
            self._journal,
            self._perform,
            next_index=replica.next_index,
            snapshot_index=None if recovered.resumed else recovered.snapshot_index,
            clock=Clock(not_before_ms=catalog.wall_ms),
            metrics=metrics,
            workers=self._workers,
        )
        try:
            self._scratch = scratch = Scratch(self._scratch_path)
            self.manifests = Manifests(scratch.within("manifests"), self._journal, self._workers)
            self._listings = Listings(
                self.loop,
                self._journal,
                self.manifests,
                cluster=lambda: catalog.cluster,
                directory=scratch.within("listings"),
                # Also of datasets that are listed and not READY yet: their manifests are stored already.
                live_digests=lambda: self.loop.read(
                    lambda catalog, fleet: catalog.manifest_digests() | fleet.listed_digests()
                ),
                workers=self._workers,
                metrics=metrics,
            )
        except OSError as error:  # a full disk, as a rule the journal's
            raise Unavailable(
                f"cannot make its scratch directory {self._scratch_path}: {error.strerror}"
            ) from error
        self._farewell = Farewell(self.loop, config, catalog)
        self._mesos = MesosShell(
            lambda scheduler: make_driver(scheduler, self._framework()),
            self.loop.put,
            spawn=self.loop.spawn,
            check=self.loop.check,
            launch_values=self._launch_values,
            framework=self._framework,
            identity=lambda: (self._catalog.cluster, config.principal),
            on_error=self._farewell.refused,
            metrics=metrics,
        )
        self._probes = Probes(self.loop.put, self.loop.spawn)
        self._summons = Summons(self.loop.peek, self._mesos.send_message, lambda: self.schedulers)

    def begin(self) -> None:
        """Take the state over, then go to Mesos. :raises NotLeading: leadership ended already, see `loop.ended`."""
        self.loop.start()
        began = LeadershipBegan(
            self._epoch,
            self._config.fleet,
            uuid.uuid4().bytes,
            self._config.name,
            os.urandom(SEED_BYTES),
            self._config.master_name,
        )
        self.loop.put_and_wait(began)
        self._warn_of_ignored_fleet()
        self._listings.sweep()
        self._mesos.start()
        self.loop.spawn(self._summons.run)
        self.loop.spawn(self._warn_of_newer_journal)
        self.loop.spawn(self._warn_of_mass_silence)
        self.loop.spawn(self._tell_of_what_does_not_fit)
        log.info(
            "leading epoch=%d cluster=%s framework_id=%s datasets=%d jobs=%d",
            self._epoch,
            self._catalog.cluster.hex(),
            self._catalog.framework_id or "new",
            len(self._catalog.datasets),
            len(self._catalog.jobs),
        )

    def stop(self) -> None:
        """Decide nothing more, and send Mesos nothing more; returns at once. Idempotent."""
        self.loop.stop()
        self._mesos.stop()

    def close(self) -> None:
        """End it, however far it came; idempotent."""
        self.stop()
        self._probes.close()
        self._listings.close()
        self.manifests.close()
        if self._scratch is not None:
            self._scratch.close()
        retire(self._workers)

    @property
    def term(self) -> tuple[bytes, int]:
        """The cluster that it leads, b"" before it has begun, and its epoch."""
        return self._catalog.cluster, self._epoch

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Return the URLs of all schedulers, the leader's first."""
        known = self._schedulers() if self._schedulers is not None else ()
        return (self._url, *(url for url in known if url != self._url))

    def leader_view(self) -> dict[str, Any]:
        """Return what GET /v1/leader says."""

        def view(catalog: Catalog, fleet: Fleet) -> dict[str, Any]:
            return {
                "leader": self._url,
                "self": self._url,
                "epoch": catalog.epoch,
                "framework_id": catalog.framework_id,
                "cluster": catalog.cluster.hex(),
                "name": catalog.name,
                "master": self._config.master_name,
                "state": "leading",
                "schedulers": list(self.schedulers),
                "next_index": self.loop.next_index,
                "behind": 0,
                "mesos": {"subscribed": fleet.subscribed, "reason": self._mesos.reason},
                "reason": attention(fleet),
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
            case a.ProbeExecutor():
                self._probes.perform(action)
            case a.EndCluster() | a.BeginAnew():
                self._farewell.perform(action)
            case _:
                self._mesos.perform(stamp, action)

    def _framework(self) -> Json:
        config, fleet = self._config, self._catalog.fleet
        return framework_to_mesos(
            name=config.name,
            user=config.framework_user,
            roles=(fleet or config.fleet).roles,
            principal=config.principal,
            failover_timeout_ms=config.failover_timeout_ms,
            gpu_agents=config.gpu_agents,
            webui_url=self._url,
            framework_id=self._catalog.framework_id,
            disk_bytes=(fleet or config.fleet).disk_bytes,
        )

    def _launch_values(self, launch: LaunchPlanned) -> LaunchValues:
        environment = launch_environment(
            launch,
            cluster=self._catalog.cluster,
            schedulers=self.schedulers,
            variables=self._config.executor_variables(),
            socket_dir=self._config.socket_dir,
            fillers=self._config.fillers,
        )
        mem_bytes = launch.mem_bytes + overhead_bytes(launch.mem_bytes, launch.disk_bytes)
        kind, program = parse_program(self._catalog.fleet.executor if self._catalog.fleet else "")
        if kind:
            command = python_command(program if kind == "python" else "python3")
            container = container_to_mesos(program, self._config.socket_dir) if kind == "image" else None
            return LaunchValues(mem_bytes, command, environment, container=container)
        agent = self.loop.peek(lambda catalog, fleet: fleet.agents.get(launch.agent_id))
        bundle = self._bundles.choose(() if agent is None else agent.attributes)
        if bundle is None:
            return LaunchValues(mem_bytes, self._config.command, environment)
        return LaunchValues(mem_bytes, bundle_command(bundle), environment, (uri(bundle, self._url),))

    def _tell_of_what_does_not_fit(self) -> None:
        """Say once that no offer fits what is wanted, and again when it is for another reason."""
        told = ""
        while True:
            what, details = self.loop.peek(unsatisfied)
            if what and what != told:
                log.warning("%s; %s (`stoker explain --offers` says more)", what, details)
            told = what or told
            gevent.sleep(UNFIT_LOOK_INTERVAL_MS / 1000)

    def _warn_of_newer_journal(self) -> None:
        while not (proof := self.loop.peek(lambda catalog, fleet: fleet.newer_journal)):
            gevent.sleep(NEWER_LOOK_INTERVAL_MS / 1000)
        log.error("%s", about_newer_journal(proof))

    def _warn_of_mass_silence(self) -> None:
        """Say once that it began, each time."""
        is_told = False
        while True:
            said = self.loop.peek(lambda catalog, fleet: about_silence(fleet))
            if said and not is_told:
                log.warning("%s", said)
            is_told = bool(said)
            gevent.sleep(UNFIT_LOOK_INTERVAL_MS / 1000)

    def _warn_of_ignored_fleet(self) -> None:
        kept, told = self._catalog.fleet, self._config.fleet
        if kept is not None and kept != told:
            log.warning(
                "the fleet of the journal stands (instances=%d mem_bytes=%d role=%s), the options (instances=%d "
                "mem_bytes=%d role=%s) are for a new cluster: change it with `stoker fleet set`",
                kept.instances, kept.mem_bytes, kept.role, told.instances, told.mem_bytes, told.role,
            )  # fmt: skip
