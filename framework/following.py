"""The journal's state, followed: what a follower keeps up to date, and what a leader takes over.

A `Replica` is a catalog and the index of the record that comes next. `Follower` feeds one from a home, on a greenlet of its
own, for as long as this scheduler waits for its turn; the leader-to-be then reads the rest through its journal. A replica
belongs to one membership: once somebody has led with it, it is ahead of what it knows, and is thrown away.

Records are applied in slices, so that a long journal holds up the hub for no more than SLICE_MS at a time; a snapshot is
decoded in a native thread.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from stoker.framework.clock import now_ms
from stoker.framework.collector import without_collector
from stoker.framework.config import Config
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.codec import CodecError, NewerError
from stoker.framework.core.replay import REPLAYED_MAX, replay
from stoker.framework.errors import OtherCluster
from stoker.framework.farewell import check_not_uninstalled
from stoker.framework.journaling import LeaderJournal, run_in
from stoker.framework.snapshots import decode_snapshot
from stoker.framework.turns import rest
from stoker.zk.errors import Corrupt, TooNew
from stoker.zk.home import Home, Snapshot
from stoker.zk.journal import Recovered

SLICE_MS = 20  # of applying, then the hub gets a turn
RECORDS_A_LOOK = REPLAYED_MAX  # between two looks at the clock

log = logging.getLogger(__name__)


class Replica:
    """A catalog that follows the journal; `next_index` is of the first record that is not in it, `epoch` of the last one."""

    def __init__(self, workers: ThreadPool) -> None:
        self._workers = workers
        self.catalog = Catalog()
        self.next_index = 0
        self.epoch = 0

    @property
    def is_empty(self) -> bool:
        """Return whether nobody has ever led with this journal, as far as it was followed."""
        return self.next_index == 0 and not self.catalog.cluster

    def restore(self, index: int, data: bytes) -> None:
        """Become the state of a snapshot. :raises Corrupt, TooNew: it is none, or written by a newer program."""
        try:
            self.catalog = run_in(self._workers, decode_snapshot, data)
        except CodecError as error:
            raise _kind_of(error)(f"the snapshot at index {index}: {error}") from error
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"the snapshot at index {index} does not hold together: {error!r}") from error
        self.next_index = index
        self.epoch = max(self.epoch, self.catalog.epoch)
        gc.freeze()  # so many values that the collector, with the hub waiting, need not look at again

    def apply(self, first_index: int, records: Sequence[bytes]) -> None:
        """Apply records, from `first_index` on; those that are in it already are passed over.

        :raises Corrupt, TooNew: a record is missing, is none, or was written by a newer program.
        """
        if first_index > self.next_index:
            raise Corrupt(f"record {self.next_index} is missing: the next one is {first_index}")
        began_ms = now_ms()
        for start in range(self.next_index - first_index, len(records), RECORDS_A_LOOK):
            some = records[start : start + RECORDS_A_LOOK]
            try:
                with without_collector():
                    replay(self.catalog, some, first_index + start)
            except CodecError as error:
                raise _kind_of(error)(str(error)) from error
            self.next_index = first_index + start + len(some)
            if now_ms() - began_ms >= SLICE_MS:
                rest()
                began_ms = now_ms()


def take_over(
    journal: LeaderJournal, replica: Replica | None, workers: ThreadPool
) -> tuple[Recovered, Replica]:
    """Lead `journal`; return what it says, and the state at its end: `replica` brought up to date, or a new one.

    :raises JournalError: see Journal.lead; and the journal can only be closed.
    """
    recovered = journal.lead(replica.next_index if replica is not None else 0)
    if replica is None or not recovered.resumed:
        replica = Replica(workers)
        if recovered.snapshot is not None:
            replica.restore(recovered.snapshot_index, recovered.snapshot)
        replica.next_index = recovered.snapshot_index
    began_index = replica.next_index
    with without_collector():
        for first_index, records in journal.read_records(recovered):
            replica.apply(first_index, records)
            rest()
    replica.epoch = recovered.epoch
    gc.freeze()
    log.info(
        "replayed epoch=%d next_index=%d records=%d resumed=%s",
        recovered.epoch,
        replica.next_index,
        replica.next_index - began_index,
        recovered.resumed,
    )
    return recovered, replica


class Follower:
    """Follow `home` into `replica` on a greenlet. `on_failure` is told what ended it, but for `stop`.

    `caught_up` is set once all that the journal held at some moment has been applied.
    """

    def __init__(
        self, home: Home, config: Config, workers: ThreadPool, on_failure: Callable[[Exception], None]
    ) -> None:
        self.replica = Replica(workers)
        self.caught_up = Event()
        self._home = home
        self._config = config
        self._on_failure = on_failure
        self._failure: Exception | None = None
        self._greenlet = gevent.spawn(self._guarded)

    @property
    def behind_records(self) -> int:
        """Return how many records the journal is known to hold that are not applied yet."""
        return max(0, self._home.newest_index() - self.replica.next_index)

    def stop(self) -> None:
        """Follow no more; returns once what came last is applied. Idempotent. :raises Exception: that could not be done."""
        self._home.stop_following()
        self._greenlet.join()
        if self._failure is not None:
            raise self._failure

    def kill(self) -> None:
        """End it at once, wherever it is: the replica is of no use any more."""
        self._greenlet.kill()

    def _guarded(self) -> None:
        try:
            self._follow()
        except Exception as error:  # the greenlet's top frame: whoever waits for the turn gets it
            self._failure = error
            self._on_failure(error)

    def _follow(self) -> None:
        replica = self.replica
        for said in self._home.follow(replica.next_index):
            if said is None:
                check_belongs(replica.catalog, self._config)
                self.caught_up.set()
            elif isinstance(said, Snapshot):
                replica.restore(said.next_index, said.data)
            else:
                replica.epoch = said.epoch
                replica.apply(said.first_index, said.records)
                rest()


def check_belongs(catalog: Catalog, config: Config) -> None:
    """:raises OfUninstalled, OtherCluster: the journal is that of a cluster that is no more, or of another than `config` means."""
    check_not_uninstalled(catalog, config.journal_name)
    if not config.is_shared or not catalog.cluster:
        return
    told = {"--name": config.name, "--master": config.master_name}
    kept = {
        "--name": catalog.name,
        "--master": catalog.master or config.master_name,
    }
    if config.new_master:
        del kept["--master"]
    roles = {config.main_role, *config.roles_more}
    if config.role is not None and catalog.roles_had and not roles & set(catalog.roles_had):
        told["--role"], kept["--role"] = config.role, catalog.roles_had[0]
    other = [f"{flag} {kept[flag]!r}, not {told[flag]!r}" for flag in kept if kept[flag] != told[flag]]
    if other:
        hint = "; if the master has moved, say --new-master" if "--master" in "".join(other) else ""
        raise OtherCluster(
            f"the journal {config.journal_name} is that of another cluster: its schedulers run with "
            f"{' and '.join(other)}; nothing was changed{hint}"
        )


def role_note(catalog: Catalog, config: Config) -> str:
    """Return what to say of a fleet whose roles nobody told at this start; nothing where there is nothing to say."""
    roles = () if catalog.fleet is None else catalog.fleet.roles
    if config.role is not None or not roles or config.main_role in roles:
        return ""
    return f"no --role is given: this cluster's fleet has {' and '.join(roles)}, and goes on with that"


def _kind_of(error: CodecError) -> type[Corrupt] | type[TooNew]:
    return TooNew if isinstance(error, NewerError) else Corrupt
