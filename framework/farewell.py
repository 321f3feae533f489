"""What this leadership does when Mesos, or the operator, ends the framework: one clear message, or the next step.

Mesos refuses a framework with an ERROR, after which its driver is over. Who is told that the framework has been removed never takes
a new id by itself: what the old one launched is gone, and only the operator knows whether that was meant (`--new-framework`).
"""

from __future__ import annotations

import logging

import gevent

from stoker.framework import errors
from stoker.framework.config import Config
from stoker.framework.core.actions import BeginAnew, EndCluster
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.departures import UninstallState
from stoker.framework.core.events import Event, FrameworkRemoved, TornDown
from stoker.framework.errors import Fatal, OfUninstalled, Uninstalled
from stoker.framework.loop import Loop
from stoker.zk.errors import Fenced

FAILED_OVER = "failed over"  # in Mesos' word to a framework's old stream when a new one has subscribed
REMOVED = "has been removed"  # to one with an id that it has ended
PUT_AGAIN_MS = 500  # to a loop whose queue is full
LINGER_MS = 3_000  # after an uninstall: so that whoever waits for it is told

log = logging.getLogger(__name__)


def check_not_uninstalled(catalog: Catalog, journal: str) -> None:
    """:raises OfUninstalled: the journal is that of a cluster that was uninstalled."""
    uninstall = catalog.uninstall
    if uninstall is not None and uninstall.state is UninstallState.FINISHED:
        raise OfUninstalled(
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
    """See the module. `refused` is told what the master said, once; `perform` takes the actions that end a leadership."""

    def __init__(self, loop: Loop, config: Config, catalog: Catalog) -> None:
        self._loop = loop
        self._config = config
        self._catalog = catalog
        self._removed = ""  # the framework id that a new one takes the place of

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
            loop.spawn(self._tell, TornDown())
        elif config.new_framework:
            log.warning("Mesos has removed framework %s; a new one takes its place", known)
            self._removed = known
            loop.spawn(self._tell, FrameworkRemoved())
        else:
            loop.stop(
                Fatal(
                    f"Mesos has removed this framework (id {known}): it was torn down, or no scheduler was there for longer "
                    "than its failover timeout, and its executors are ended. Nothing in the journal is lost. To go on under "
                    "a new framework id start once with --new-framework: executors are launched anew, and data on their "
                    "persistent volumes is found again"
                )
            )

    def perform(self, action: EndCluster | BeginAnew) -> None:
        """End this leadership."""
        if isinstance(action, EndCluster):
            log.warning("the cluster is uninstalled; left behind: %s", "; ".join(action.left) or "nothing")
            self._loop.spawn(self._linger)
        elif self._removed:  # else another leadership was told, and this one has subscribed anew
            said = f"Mesos has removed framework {self._removed}; beginning anew under another id"
            self._loop.stop(errors.BeginAnew(said))

    def _tell(self, event: Event) -> None:
        """Put what nobody repeats, since the driver is over: untold, this leader would stay without Mesos."""
        while not self._loop.put(event, must=True) and not self._loop.ended.ready():
            gevent.sleep(PUT_AGAIN_MS / 1000)

    def _linger(self) -> None:
        gevent.sleep(LINGER_MS / 1000)
        self._loop.stop(Uninstalled("the cluster is uninstalled"))
