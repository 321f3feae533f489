"""What this leadership does when Mesos, or the operator, ends the framework: one clear message, or the next step.

Mesos refuses a framework with an ERROR, after which its driver is over. Who is told that the framework has been removed never takes
a new id by itself: what the old one launched is gone, and only the operator knows whether that was meant (`--new-framework`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent

from stoker.framework.config import Config
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.departures import UninstallState
from stoker.framework.core.events import FrameworkRemoved, TornDown
from stoker.framework.errors import BeginAnew, Fatal, Uninstalled
from stoker.framework.loop import Loop
from stoker.zk.errors import Fenced

FAILED_OVER = "failed over"  # in Mesos' word to a framework's old stream when a new one has subscribed
REMOVED = "has been removed"  # to one with an id that it has ended
LOOK_INTERVAL_MS = 250
LINGER_MS = 3_000  # after an uninstall: so that whoever waits for it is told

log = logging.getLogger(__name__)


def check_not_uninstalled(catalog: Catalog, journal: str) -> None:
    """:raises Fatal: the journal is that of a cluster that was uninstalled."""
    uninstall = catalog.uninstall
    if uninstall is not None and uninstall.state is UninstallState.FINISHED:
        raise Fatal(
            f"the cluster {catalog.name!r} of the journal {journal} was uninstalled: nothing runs of it any more. To "
            "begin a new cluster give another place, or move this journal away (it is only to be read: `stoker journal "
            "inspect`), and say --new-cluster"
        )


_WAYS_OUT = (
    ("uthoriz", "let its ACLs allow this --principal to register with this --role, or give others"),
    ("principal", "start with the --principal that this framework has always had"),
    ("role", "give a --role that Mesos takes"),
    ("is needed", "upgrade the masters, or name others with --master"),
)


def way_out(message: str) -> str:
    """Return what to do where the master said `message`; nothing where only its text helps.

    >>> way_out("Not authorized to use roles '{ cache }'")
    ': let its ACLs allow this --principal to register with this --role, or give others'
    """
    return next((f": {hint}" for part, hint in _WAYS_OUT if part in message), "")


class Farewell:
    """See the module. `spawn` is the loop's; `refused` is told what the master said, once."""

    def __init__(self, loop: Loop, config: Config, catalog: Catalog) -> None:
        self._loop = loop
        self._config = config
        self._catalog = catalog

    def refused(self, message: str) -> None:
        """The master will not have this framework any more."""
        loop, config, catalog = self._loop, self._config, self._catalog
        known = catalog.framework_id or "none yet"
        if config.is_shared and FAILED_OVER in message:
            loop.stop(Fenced(f"another scheduler speaks to Mesos for this framework now ({message})"))
        elif REMOVED not in message:
            loop.stop(
                Fatal(
                    f"Mesos refused this framework (id {known}): {message}{way_out(message)}; nothing was changed"
                )
            )
        elif catalog.uninstall is not None and catalog.uninstall.state is UninstallState.TEARING_DOWN:
            loop.put(TornDown(), must=True)
        elif config.new_framework:
            log.warning("Mesos has removed framework %s; a new one takes its place", known)
            loop.put(FrameworkRemoved(), must=True)
            loop.spawn(self._begin_anew, known)
        else:
            loop.stop(
                Fatal(
                    f"Mesos has removed this framework (id {known}): it was torn down, or no scheduler was there for longer "
                    "than its failover timeout, and its executors are ended. Nothing in the journal is lost. To go on under "
                    "a new framework id start once with --new-framework: executors are launched anew, and data on their "
                    "persistent volumes is found again"
                )
            )

    def watch(self) -> None:
        """Wait for the end of an uninstall, and end this leadership with it."""
        self._wait_until(_is_finished)
        left = self._loop.read(lambda catalog, fleet: catalog.uninstall and catalog.uninstall.left)
        log.warning("the cluster is uninstalled; left behind: %s", "; ".join(left or ()) or "nothing")
        gevent.sleep(LINGER_MS / 1000)
        self._loop.stop(Uninstalled("the cluster is uninstalled"))

    def _begin_anew(self, known: str) -> None:
        self._wait_until(lambda catalog: not catalog.framework_id and not catalog.launches)
        self._loop.read(lambda catalog, fleet: None)  # what it saw is durable
        self._loop.stop(BeginAnew(f"Mesos has removed framework {known}; beginning anew under another id"))

    def _wait_until(self, condition: Callable[[Catalog], Any]) -> None:
        while not self._loop.peek(lambda catalog, fleet: condition(catalog)):
            gevent.sleep(LOOK_INTERVAL_MS / 1000)


def _is_finished(catalog: Catalog) -> bool:
    return catalog.uninstall is not None and catalog.uninstall.state is UninstallState.FINISHED
