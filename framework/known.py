"""What a scheduler remembers of its journal from one membership to the next: enough to see that something is gone."""

from __future__ import annotations

from stoker.framework.core.catalog import Catalog
from stoker.zk.errors import Corrupt, Unavailable


class Known:
    """The cluster that this process has followed or led, and the newest epoch it has heard of. b"": none yet."""

    def __init__(self) -> None:
        self.cluster = b""
        self.epoch = 0

    def note(self, cluster: bytes, epoch: int) -> None:
        """Remember what a journal that was followed, or led, said; another cluster than the first changes nothing."""
        self.cluster = self.cluster or cluster
        if cluster == self.cluster:
            self.epoch = max(self.epoch, epoch)

    def check(self, catalog: Catalog) -> None:
        """See that a journal that was read to its end, `catalog`, has not lost what we know was in it.

        :raises Corrupt: it is empty now, or another cluster's.
        :raises Unavailable: it is older than it was; a server of ZooKeeper that lags behind shows that too, for a while.
        """
        if not self.cluster:
            return
        if not catalog.cluster:
            raise Corrupt(
                f"it is empty now, but was that of cluster {self.cluster.hex()}, which is not given up for that: bring "
                "the journal back with `stoker journal restore`; to begin a new cluster start the schedulers again"
            )
        if catalog.cluster != self.cluster:
            raise Corrupt(
                f"it is that of cluster {catalog.cluster.hex()} now, but was that of {self.cluster.hex()}: bring that "
                "back, or start the schedulers again to have the other"
            )
        if catalog.epoch < self.epoch:
            raise Unavailable(
                f"it ends in epoch {catalog.epoch}, but there has been epoch {self.epoch}: this is an older journal, or "
                "a ZooKeeper server that lags behind; bring the newest back with `stoker journal restore`"
            )
