"""A scheduler's process: its API, and one leadership after another until it is told to stop.

The API answers from the first moment to the last; without a leadership it answers 503 with the reason. A journal that
cannot be written for a while (a full disk) ends the leadership, and the same process tries to lead again. Everything
else that ends a leadership ends the process, with one clear line and a status other than 0: whoever supervises it
starts it again, and it finds everything in the journal.

Exit status: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 wrong configuration.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent.event import AsyncResult

import stoker
from stoker.framework.api import Api
from stoker.framework.clock import now_ms
from stoker.framework.config import Config
from stoker.framework.errors import ConfigError, Fatal, NotLeading
from stoker.framework.journaling import JournalThread
from stoker.framework.leadership import Leadership
from stoker.framework.loop import Crashed
from stoker.framework.metrics import Metrics
from stoker.framework.openapi import document
from stoker.framework.routes import ROUTES
from stoker.framework.schemes import known_schemes
from stoker.framework.translate import Json
from stoker.framework.web import make_app, make_server
from stoker.mesos.scheduler_driver import SchedulerDriver
from stoker.zk.errors import JournalError, Unavailable
from stoker.zk.local import LocalJournal

USAGE = "usage: python -m stoker.framework --config FILE   (JSON; - is standard input; `stoker scheduler` writes it)"
LEAD_DELAY_MS_MIN = 200  # between tries to lead again, doubled
LEAD_DELAY_MS_MAX = 5_000
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
    except ConfigError as error:
        for problem in error.problems:
            print(f"stoker scheduler: {problem}", file=sys.stderr)
        return 2
    _set_up_logging(config.log_level)
    try:
        return Daemon(config, secret).run()
    except Fatal as error:
        print(f"stoker scheduler: {error}", file=sys.stderr)
        return 1


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

    def __init__(self, config: Config, secret: str) -> None:
        self._config = config
        self._secret = secret
        self._metrics = Metrics()
        self._leadership: Leadership | None = None
        self._reason = "the scheduler is starting"
        self._has_led = False
        self._exit: AsyncResult = AsyncResult()
        self._url = ""

    def run(self) -> int:
        """Return the exit status. :raises Fatal: with what the operator should read."""
        _raise_descriptor_limit()
        server = self._listen()
        with _signals(self._stop):
            server.start()
            print(f"STOKER_URL={self._url}", flush=True)
            log.info("listening url=%s pid=%d", self._url, os.getpid())
            leading = gevent.spawn(self._lead_until_it_fails)
            try:
                status: int = self._exit.get()
                return status
            finally:
                self._reason = "this scheduler is stopping"
                leading.kill()
                server.stop(timeout=STOP_TIMEOUT_S)

    def _listen(self) -> Any:
        config = self._config
        version = stoker.__version__
        api = Api(
            self._current,
            allow_sources=config.allow_sources,
            known_schemes=gevent.spawn(known_schemes).get,
            metrics=self._metrics,
            document=document(ROUTES, version=version),
        )
        try:
            server = make_server(config.host, config.port, make_app(api, self._metrics))
        except OSError as error:
            hint = "choose another --port, or stop who has it" if config.port else "choose another --host"
            raise Fatal(
                f"cannot listen on {config.host}:{config.port}: {error.strerror or error}; {hint}"
            ) from error
        self._url = config.url(server.server_port)
        return server

    def _current(self) -> Leadership:
        leadership = self._leadership
        if leadership is None:
            raise NotLeading(self._reason)
        if leadership.loop.ended.ready():
            raise NotLeading(str(leadership.loop.ended.get()))
        return leadership

    def _stop(self) -> None:
        log.info("stopping")
        self._exit.set(0)

    def _lead_until_it_fails(self) -> None:
        try:
            self._lead_forever()
        except Exception as error:  # the greenlet's top frame: `run` raises it again
            self._exit.set_exception(error)

    def _lead_forever(self) -> None:
        delay_ms = LEAD_DELAY_MS_MIN
        while True:
            began_ms = now_ms()
            try:
                self._lead()
            except Unavailable as error:
                if not self._has_led:
                    raise Fatal(f"the journal {self._config.journal} cannot be used: {error}") from error
                log.error("not leading: the journal %s: %s; trying again", self._config.journal, error)
                self._reason = f"the journal cannot be used now: {error}"
            except JournalError as error:
                raise Fatal(f"the journal {self._config.journal} cannot be used: {error}") from error
            delay_ms = LEAD_DELAY_MS_MIN if now_ms() - began_ms > LEAD_DELAY_MS_MAX else delay_ms
            gevent.sleep(delay_ms / 1000)
            delay_ms = min(delay_ms * 2, LEAD_DELAY_MS_MAX)

    def _lead(self) -> None:
        """Take the journal and lead until it ends. :raises JournalError, Fatal: how it ended."""
        self._metrics.lead_tries.inc()
        journal = JournalThread(
            LocalJournal(self._config.journal_dir, owner=f"scheduler {self._config.name} at {self._url}")
        )
        leadership: Leadership | None = None
        try:
            leadership = Leadership(
                self._config, journal, self._make_driver, url=self._url, metrics=self._metrics
            )
            with contextlib.suppress(NotLeading):  # it ended before it began: `ended` says how
                leadership.begin()
                self._leadership, self._has_led = leadership, True
                self._metrics.leading.set(1)
            leadership.loop.ended.wait()
            self._reason = f"its leadership ended: {leadership.loop.ended.get()}"
            self._raise_end(leadership)
        finally:
            self._leadership = None
            self._metrics.leading.set(0)
            if leadership is not None:
                leadership.close()  # while the journal is ours: the next scheduler may use the same scratch directory
            journal.close()

    def _raise_end(self, leadership: Leadership) -> None:
        error: BaseException = leadership.loop.ended.get()
        if isinstance(error, Crashed):
            for line in leadership.loop.story():
                log.error("story %s", line)
            log.critical("a mistake of our own ended this leadership", exc_info=error.__cause__)
            raise Fatal(f"our mistake: {error}; the log tells the last events") from error
        raise error

    def _make_driver(self, scheduler: Any, framework: Json) -> SchedulerDriver:
        config = self._config
        return SchedulerDriver(
            scheduler,
            framework,
            config.master,
            implicit_acknowledgements=False,
            principal=config.principal or None,
            secret=self._secret or None,
        )


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    handlers = [gevent.signal_handler(number, stop) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield
    finally:
        for handler in handlers:
            handler.cancel()
