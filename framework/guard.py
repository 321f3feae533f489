"""The guard of an empty journal: is it a new cluster's, or one that was lost while its executors live on?

A scheduler that finds its journal empty asks the Mesos master before it takes anything or writes anything. A framework of
our name that is registered, or may still come back, was most likely run by a journal that is gone: to begin anew beside
it would leave its executors, its cache and its framework id orphaned. Then, and as long as the master cannot be asked,
the scheduler waits: until the operator restores the journal, or says that this is a new cluster.

Roles are not looked at, only told. They are the journal's (`fleet set --role`), and the journal is what may be lost: what
the options say of them, which may be nothing, was true when the cluster began. So clusters of different names begin
beside each other unasked, and for one more of the same name, in whatever role, `--new-cluster` is said once.

Nothing is inferred from an answer that did not come.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import Protocol

from stoker.framework.config import Config
from stoker.mesos.detector import locate_master
from stoker.mesos.errors import MesosError
from stoker.mesos.operator import KnownFramework, Operator
from stoker.mesos.versions import reason_too_old
from stoker.zk.errors import JournalError
from stoker.zk.local_onlooker import LocalOnlooker
from stoker.zk.onlooker import is_empty

ASK_INTERVAL_MS = 2_000  # between tries while waiting; also how soon a restored journal is noticed
NAMED_MAX = 3  # frameworks named in a reason

log = logging.getLogger(__name__)


class Master(Protocol):
    """What the guard asks; mesos.operator.Operator is one."""

    def frameworks(self) -> list[KnownFramework]: ...

    def missing_agents(self) -> list[str]: ...

    def version(self) -> str: ...


class Guard:
    """See the module. `reason_to_wait` is asked anew before every try to lead an empty journal."""

    def __init__(self, master: Callable[[], Master], *, name: str, is_new_cluster: bool) -> None:
        """`is_new_cluster`: the operator has said so (--new-cluster), and nobody is asked."""
        self._master = master
        self._name = name
        self._is_new_cluster = is_new_cluster
        self._said = ""

    @classmethod
    def of(cls, config: Config, secret: str, *, master: Callable[[], Master] | None = None) -> Guard:
        """Return the guard that asks `config.master`, with the framework's own credentials, or another `master`."""

        def operator() -> Master:
            tls = config.master_context()
            address = locate_master(config.master, by_name=tls is not None)
            return Operator(address, principal=config.principal, secret=secret, tls=tls)

        return cls(master or operator, name=config.name, is_new_cluster=config.new_cluster)

    def reason_to_wait(self) -> str:
        """Return why a scheduler with an empty journal must not begin, "" where it may. Takes a minute at the most.

        Says it in the log as well, once as long as it stays the same.
        """
        reason = "" if self._is_new_cluster else self._reason()
        if reason and reason != self._said:
            log.warning("waiting, and nothing is written: %s", reason)
        if self._said and not reason:
            log.info("the Mesos master knows no framework name=%s now: going on", self._name)
        self._said = reason
        return reason

    def _reason(self) -> str:
        try:
            master = self._master()
            ours = [f for f in master.frameworks() if f.name == self._name]
            missing = [] if ours else master.missing_agents()
            too_old = reason_too_old(master.version())
        except MesosError as error:
            return (
                "the journal is empty, and the Mesos master cannot be asked whether this is a new cluster "
                f"({error}); --new-cluster begins one unasked"
            )
        if too_old:  # with an id that it gave us and we did not keep, each try would leave a framework behind
            return (
                f"the Mesos master will not do ({too_old}): upgrade the masters, or name others with --master"
            )
        if ours:
            return (
                f"the journal is empty, but Mesos knows {_named(ours)} of name {self._name!r}: if its journal was "
                "lost, bring it back with `stoker journal restore`; --new-cluster begins a new one beside it, and "
                "another --name does"
            )
        if missing:
            return (
                f"the journal is empty, and the Mesos master, started not long ago, waits for {len(missing)} agents "
                "to come back, on which a framework of ours may run; --new-cluster begins a new cluster at once"
            )
        return ""


def is_unused(directory: str) -> bool:
    """Say whether nobody has ever written to the local journal in `directory`; looks only, and takes no lock.

    What is no good journal is not unused: whoever leads it will say what is wrong.
    """
    if not os.path.isdir(directory):
        return True
    try:
        return is_empty(LocalOnlooker(directory).header())
    except JournalError:
        return False


def _named(frameworks: Iterable[KnownFramework]) -> str:
    listed = [
        f"{f.framework_id} ({'connected' if f.is_connected else 'away'}, "
        f"{'role' if len(f.roles) == 1 else 'roles'} {', '.join(f.roles)})"
        for f in frameworks
    ]
    more = f" and {len(listed) - NAMED_MAX} more" if len(listed) > NAMED_MAX else ""
    return ("framework " if len(listed) == 1 else "frameworks ") + ", ".join(listed[:NAMED_MAX]) + more
