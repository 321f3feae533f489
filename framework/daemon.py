"""A scheduler's process: its API, and one membership after another until it is told to stop.

A membership is one session at the place of the journal: connect, follow what the journal says, wait for the turn, take
over, lead. It ends when the session, the epoch or the deadline is lost, or the journal cannot be written: then all that
it held (replica, catalog, fleet, the stream to Mesos) is thrown away together, and the next one begins, with the pauses of
a back-off. The API answers from the first moment to the last: a follower sends its callers on to the leader, and without
a leader it says 503 with the reason.

A journal that was good once and is not any more (damaged, of a newer format, closed to us, wiped, or with another cluster's
in its place) is waited for: this scheduler says why it does not lead, leads nothing that has lost what it knew, and
follows again once an operator has mended it. At the start the same ends the process: there it is most likely a wrong option.

Everything else that ends a leadership ends the process, with one clear line and a status other than 0: whoever supervises
it starts it again, and it finds everything in the journal. SIGTERM leaves the election first, so that the next scheduler
need not wait for our session to run out.

Exit status: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 wrong configuration (a journal of a cluster that was uninstalled, too).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import resource
import signal
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

import stoker
from stoker.framework.api import Api
from stoker.framework.bundles import Bundles, open_bundles
from stoker.framework.clock import now_ms
from stoker.framework.config import Config
from stoker.framework.core.catalog import Catalog
from stoker.framework.errors import (
    BeginAnew,
    ConfigError,
    Fatal,
    LedElsewhere,
    MustWait,
    NotLeading,
    OfUninstalled,
    OtherCluster,
    Uninstalled,
)
from stoker.framework.following import Follower, Replica
from stoker.framework.guard import ASK_INTERVAL_MS, Guard, is_unused
from stoker.framework.journaling import JournalGreenlets, JournalThread, retire
from stoker.framework.known import Known
from stoker.framework.leadership import Leadership, MakeDriver
from stoker.framework.loop import Crashed
from stoker.framework.metrics import Metrics
from stoker.framework.openapi import document
from stoker.framework.routes import ROUTES
from stoker.framework.schemes import known_schemes
from stoker.framework.translate import Json
from stoker.framework.web import make_app, make_server
from stoker.mesos.scheduler_driver import SchedulerDriver
from stoker.zk.errors import Corrupt, Denied, Fenced, JournalError, TooNew, Unavailable
from stoker.zk.home import Home, open_home

USAGE = "usage: python -m stoker.framework --config FILE   (JSON; - is standard input; `stoker scheduler` writes it)"
RETRY_MS_MIN = 200  # between memberships, doubled
RETRY_MS_MAX = 5_000
FIRST_TRIES_MAX = 3  # at a place in ZooKeeper that was never reached: then its URL is taken for wrong
STOP_TIMEOUT_S = 5

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run a scheduler as the command line says; return the exit status."""
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if len(arguments) != 2 or arguments[0] != "--config":
        print(USAGE, file=sys.stderr)
        return 2
    try:
        config = Config.from_json(_read_config(arguments[1]))
        secret = config.resolve_secret()
        config.master_context()
        bundles = open_bundles(config.bundles)
        _check_home(config)
    except ConfigError as error:
        for problem in error.problems:
            print(f"stoker scheduler: {problem}", file=sys.stderr)
        return 2
    _set_up_logging(config.log_level)
    daemon = Daemon(config, secret, bundles=bundles)
    signals = (signal.SIGTERM, signal.SIGINT)
    handlers = [gevent.signal_handler(number, daemon.stop) for number in signals]
    try:
        return daemon.run()
    except Uninstalled as error:
        print(f"stoker scheduler: {error}", file=sys.stderr)
        return 0
    except Fatal as error:
        print(f"stoker scheduler: {error}", file=sys.stderr)
        return 2 if isinstance(error, OfUninstalled) else 1
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            handler.cancel()
            signal.signal(number, signal.SIG_IGN)  # told twice, it ends with the status of the first time


def _check_home(config: Config) -> None:
    """:raises ConfigError: the journal's URL, or its secret, is none."""
    try:
        open_home(
            config.journal,
            member="",
            owner="",
            session_timeout_ms=config.session_timeout_ms,
            gevent=True,
            secret=config.zk_secret,
        ).close()
    except ValueError as error:
        raise ConfigError([f"{'--zk' if config.is_shared else '--journal'}: {error}"]) from error


def _read_config(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--config {path}: {error}"]) from error


def _set_up_logging(level: str) -> None:
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.raiseExceptions = False  # a full disk under the log is no reason to say more


class Daemon:
    """One scheduler. Make it and `run` it in the main greenlet of a process that gevent has patched."""

    def __init__(
        self,
        config: Config,
        secret: str,
        *,
        open_home: Callable[..., Home] = open_home,
        make_driver: MakeDriver | None = None,
        bundles: Bundles | None = None,
    ) -> None:
        self._config = config
        self._bundles = bundles or Bundles()
        self._process = uuid.uuid4().hex
        self._secret = secret
        self._tls = config.master_context()
        self._open_home = open_home
        self._make_driver = make_driver or self._make_mesos_driver
        self._guard = Guard.of(config, secret)
        self._metrics = Metrics()
        self._home: Home | None = None
        self._follower: Follower | None = None
        self._leadership: Leadership | None = None
        self._state, self._reason = "starting", "the scheduler is starting"
        self._has_begun = False
        self._known = Known()
        self._told = ""  # what is to be mended, as the log has it
        self._exit: AsyncResult = AsyncResult()
        self._url = ""
        self._port = 0

    def run(self) -> int:
        """Return the exit status. :raises Fatal: with what the operator should read."""
        _raise_descriptor_limit()
        server = self._listen()
        server.start()
        print(f"STOKER_URL={self._url}", flush=True)
        log.info("listening url=%s pid=%d", self._url, os.getpid())
        work = gevent.spawn(self._take_part_until_it_fails)
        try:
            status: int = self._exit.get()
            return status
        finally:
            self._say("stopping", "this scheduler is stopping")
            work.kill()
            server.stop(timeout=STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Let `run` leave the election, and return 0; idempotent."""
        log.info("stopping")
        self._exit.set(0)

    def _listen(self) -> Any:
        config = self._config
        version = stoker.__version__
        api = Api(
            self._current,
            about=self._about,
            allow_sources=config.allow_sources,
            known_schemes=gevent.spawn(known_schemes).get,
            metrics=self._metrics,
            document=document(ROUTES, version=version),
            bundles=self._bundles,
        )
        try:
            server = make_server(
                config.host, config.port, make_app(api, self._metrics, check_leads=api.check_leads)
            )
        except OSError as error:
            hint = "choose another --port, or stop who has it" if config.port else "choose another --host"
            raise Fatal(
                f"cannot listen on {config.host}:{config.port}: {error.strerror or error}; {hint}"
            ) from error
        self._port = server.server_port
        self._url = config.url(self._port)
        return server

    # --- what the API asks

    def _current(self) -> Leadership:
        """Return the present leadership. :raises LedElsewhere, NotLeading: there is none here; who leads, or why nobody."""
        leadership = self._leadership
        if leadership is not None and not leadership.loop.ended.ready():
            return leadership
        leader = self._leader()
        if leader:
            raise LedElsewhere(leader)
        raise NotLeading(
            f"this scheduler leads no more{_how_it_ended(leadership)}" if leadership else self._why_not()
        )

    def _leader(self) -> str:
        """Return the URL of the scheduler that leads, as far as we know and it is not us; else ""."""
        home = self._home
        members = home.members() if home is not None and self._state in ("following", "waiting") else ()
        return "" if not members or members[0] == self._url else members[0]

    def _about(self) -> dict[str, Any]:
        """Return what GET /v1/leader says of a scheduler that does not lead, or cannot ask its journal now."""
        home, follower = self._home, self._follower
        leader = self._url if self._state == "leading" else self._leader()
        catalog = Catalog() if follower is None else follower.replica.catalog
        return {
            "leader": leader,
            "self": self._url,
            "epoch": 0 if follower is None else follower.replica.epoch,
            "framework_id": catalog.framework_id,
            "cluster": catalog.cluster.hex(),
            "name": catalog.name or self._config.name,
            "master": self._config.master_name,
            "state": "following" if leader not in ("", self._url) else self._state,
            "schedulers": [] if home is None else list(home.members()),
            "next_index": 0 if follower is None else follower.replica.next_index,
            "behind": 0 if follower is None else follower.behind_records,
            "mesos": {"subscribed": False, "reason": "only the scheduler that leads speaks to Mesos"},
            "reason": "" if leader not in ("", self._url) else self._why_not(),
        }

    def _why_not(self) -> str:
        """Return why nobody is known to lead."""
        home = self._home
        if home is not None and home.members().count(self._url) > 1:
            return (
                f"another scheduler, or this one before it was started again, calls itself {self._url} as well: "
                "give each its own --advertise"
            )
        return self._reason

    def _say(self, state: str, reason: str) -> None:
        self._state, self._reason = state, reason

    # --- memberships

    def _take_part_until_it_fails(self) -> None:
        try:
            self._take_part_forever()
        except Exception as error:  # the greenlet's top frame: `run` raises it again
            self._exit.set_exception(error)

    def _take_part_forever(self) -> None:
        place = self._config.journal_name
        delay_ms, first_tries = RETRY_MS_MIN, FIRST_TRIES_MAX
        while True:
            began_ms = now_ms()
            try:
                self._take_part()
            except MustWait as error:
                self._say("waiting", str(error))
                delay_ms = max(delay_ms, ASK_INTERVAL_MS)
            except Unavailable as error:
                first_tries -= 1
                if not self._has_begun and (not first_tries or not self._config.is_shared):
                    raise Fatal(f"the journal {place} cannot be used: {error}") from error
                log.error("not leading: the journal %s: %s; trying again", place, error)
                self._say("starting", f"the journal cannot be used now: {error}")
            except BeginAnew as error:
                log.warning("%s", error)
                # It was said of one framework: the next that is removed needs the operator's word again.
                self._config = dataclasses.replace(self._config, new_framework=False)
                self._say("starting", str(error))
            except Fenced as error:
                if not self._config.is_shared:
                    raise Fatal(f"the journal {place} cannot be used: {error}") from error
                log.warning("leading no more: %s; following again", error)
                self._say("starting", f"this scheduler leads no more: {error}")
            except (Corrupt, TooNew, Denied, OtherCluster) as error:
                is_other = isinstance(error, OtherCluster)
                reason = str(error) if is_other else f"the journal {place} cannot be used: {error}"
                if not self._known.cluster or not self._config.is_shared:
                    raise Fatal(reason) from error
                if reason != self._told:
                    log.error("not leading until it is mended: %s", reason)
                    self._told = reason
                self._say("waiting", reason)
            except JournalError as error:
                raise Fatal(f"the journal {place} cannot be used: {error}") from error
            gc.unfreeze()  # what take-overs froze has been thrown away
            gc.collect()
            delay_ms = RETRY_MS_MIN if now_ms() - began_ms > RETRY_MS_MAX else delay_ms
            gevent.sleep(delay_ms / 1000)
            delay_ms = min(delay_ms * 2, RETRY_MS_MAX)

    def _take_part(self) -> None:
        """One membership, to its end. :raises JournalError, MustWait, Fatal: how it ended."""
        config = self._config
        home = self._open_home(
            config.journal,
            member=self._url,
            owner=f"scheduler {config.name} at {self._url}",
            session_timeout_ms=config.session_timeout_ms,
            gevent=True,
            secret=config.zk_secret,
            process=self._process,
        )
        turn: AsyncResult = AsyncResult()  # True, or what ended the membership before
        workers = ThreadPool(1)
        greenlets: list[gevent.Greenlet] = []
        try:
            home.start()
            self._home, self._has_begun = home, config.is_shared or self._has_begun
            if config.is_shared and self._state != "waiting":
                self._say("following", "no scheduler leads now")
            self._follower = Follower(home, config, workers, turn.set_exception)
            greenlets = [gevent.spawn(self._wait_turn, home, self._follower, turn)]
            try:
                turn.get()
                self._has_begun = True
                self._follower.stop()
            finally:
                self._note(self._follower)  # before it is led with, and says what is not durable yet
            if config.is_shared:
                self._check_new(self._follower.replica)  # once more: it may have been long since we joined
            self._say("taking over", "this scheduler is taking over")
            self._lead(home, self._follower.replica if config.is_shared else None)
        finally:
            self._home = None
            gevent.killall(greenlets, block=False)
            if self._follower is not None:
                self._follower.kill()
                self._follower = None
            home.close()
            retire(workers)

    def _note(self, follower: Follower) -> None:
        if self._config.is_shared and follower.caught_up.is_set():
            catalog = follower.replica.catalog
            self._known.note(catalog.cluster, catalog.epoch)

    def _wait_turn(self, home: Home, follower: Follower, turn: AsyncResult) -> None:
        """Catch up, become a candidate, and wait; `turn` is told how that ended."""
        try:
            follower.caught_up.wait()
            self._has_begun = True
            self._check_new(follower.replica)
            home.join()
            leader = self._leader()
            if leader:
                log.info("following leader=%s next_index=%d", leader, follower.replica.next_index)
            home.wait_turn()
            turn.set(True)
        except Exception as error:  # the greenlet's top frame
            turn.set_exception(error)

    def _check_new(self, replica: Replica) -> None:
        """See that this journal may be led.

        :raises MustWait: nobody has ever led with it, and it is not known to be a new cluster's.
        :raises Corrupt, Unavailable: it has lost what this scheduler knows of it.
        """
        config = self._config
        if config.is_shared:
            self._known.check(replica.catalog)
        is_new = replica.is_empty if config.is_shared else is_unused(config.journal_dir)
        if is_new and (reason := self._guard.reason_to_wait()):
            raise MustWait(reason)
        if self._state == "waiting":
            self._say("following" if config.is_shared else "starting", "no scheduler leads now")

    def _lead(self, home: Home, replica: Replica | None) -> None:
        """Take the journal and lead until it ends. :raises JournalError, MustWait, Fatal: how it ended."""
        self._metrics.lead_tries.inc()
        is_shared = self._config.is_shared
        journal = JournalGreenlets(home.journal()) if is_shared else JournalThread(home.journal())
        leadership: Leadership | None = None
        try:
            leadership = Leadership(
                self._config,
                journal,
                self._make_driver,
                url=self._url,
                metrics=self._metrics,
                replica=replica,
                schedulers=home.members,
                port=self._port,
                bundles=self._bundles,
            )
            with contextlib.suppress(NotLeading):  # it ended before it began: `ended` says how
                leadership.begin()
                self._known.note(*leadership.term)
                self._leadership = leadership
                self._say("leading", "")
                self._told = ""
                self._metrics.leading.set(1)
            leadership.loop.ended.wait()
            self._raise_end(leadership)
        finally:
            if self._state != "stopping":
                self._say("starting", "its leadership ended" + _how_it_ended(leadership))
            self._leadership = None
            self._metrics.leading.set(0)
            if leadership is not None:
                leadership.stop()
                if is_shared:
                    home.close()  # at once: the next scheduler takes over while we tidy up
                leadership.close()  # with a local journal still ours: the next process uses the same scratch directory
            journal.close()

    def _raise_end(self, leadership: Leadership) -> None:
        error: BaseException = leadership.loop.ended.get()
        if isinstance(error, Crashed):
            for line in leadership.loop.story():
                log.error("story %s", line)
            log.critical("a mistake of our own ended this leadership", exc_info=error.__cause__)
            raise Fatal(f"our mistake: {error}; the log tells the last events") from error
        raise error

    def _make_mesos_driver(self, scheduler: Any, framework: Json) -> SchedulerDriver:
        config = self._config
        return SchedulerDriver(
            scheduler,
            framework,
            config.master,
            implicit_acknowledgements=False,
            principal=config.principal or None,
            secret=self._secret or None,
            tls=self._tls,
            may_send=scheduler.may_send,
            on_trouble=scheduler.trouble,
        )


def _how_it_ended(leadership: Leadership | None) -> str:
    return (
        f": {leadership.loop.ended.get()}" if leadership is not None and leadership.loop.ended.ready() else ""
    )


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
