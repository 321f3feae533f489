"""ZooKeeper's tree of znodes: what one transaction does to it. No time, no servers, no sessions but by number.

A request is a tuple of operations that happen all or not at all. `execute` is what the ensemble's leader does: it
checks, changes its tree, and returns the changes, which `apply` makes on the others' trees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Create(NamedTuple):
    path: str
    data: bytes = b""
    ephemeral: bool = False
    sequence: bool = False


class Set(NamedTuple):
    path: str
    data: bytes
    version: int = -1


class Delete(NamedTuple):
    path: str
    version: int = -1


class Check(NamedTuple):
    path: str
    version: int = -1


Operation = Create | Set | Delete | Check


class Stat(NamedTuple):
    czxid: int
    mzxid: int
    version: int
    owner: int  # the session of an ephemeral node; 0: it stays
    children: int


class ZkError(Exception):
    """Base; the names are ZooKeeper's."""


class NoNode(ZkError):
    pass


class NodeExists(ZkError):
    pass


class BadVersion(ZkError):
    pass


class NotEmpty(ZkError):
    pass


class NoChildrenForEphemerals(ZkError):
    pass


class RolledBack(ZkError):
    """An operation before the one that failed, in one transaction."""


class RuntimeInconsistency(ZkError):
    """An operation after the one that failed, in one transaction: it was not looked at."""


class ConnectionLoss(ZkError):
    """The connection ended before an answer came: it may have happened or not."""


class SessionExpired(ZkError):
    pass


class SessionMoved(ZkError):
    """A request that came late, over a connection that its session has left."""


@dataclass(slots=True)
class Znode:
    data: bytes
    owner: int
    czxid: int
    mzxid: int
    version: int = 0
    created: int = 0  # children so far: the next sequence number; deletions do not lower it
    children: set[str] = field(default_factory=set)


class Change(NamedTuple):
    """What a transaction did: `data` None is a deletion."""

    path: str
    data: bytes | None
    owner: int = 0
    is_new: bool = False


class Tree:
    def __init__(self) -> None:
        self.nodes: dict[str, Znode] = {"/": Znode(b"", 0, 0, 0)}
        self.zxid = 0
        self._ephemerals: dict[int, set[str]] = {}

    def get(self, path: str) -> tuple[bytes, Stat]:
        """:raises NoNode: ..."""
        node = self._node(path)
        return node.data, Stat(node.czxid, node.mzxid, node.version, node.owner, len(node.children))

    def children(self, path: str) -> list[str]:
        """Return the names in no order that anybody may rely on. :raises NoNode: ..."""
        names = sorted(self._node(path).children)
        return names[1::2] + names[::2]

    def ephemerals(self, session: int) -> list[str]:
        return sorted(self._ephemerals.get(session, ()))

    def execute(
        self, session: int, operations: tuple[Operation, ...]
    ) -> tuple[list[str | Stat | ZkError | None], tuple[Change, ...]]:
        """Return a result each, and the changes, none if one of the results is an error (then all are)."""
        changes: list[Change] = []
        undo: list[Callable[[], None]] = []
        results: list[str | Stat | ZkError | None] = []
        self.zxid += 1
        for operation in operations:
            try:
                result, change = self._one(session, operation, undo)
            except ZkError as error:
                for step in reversed(undo):
                    step()
                failed = len(results)
                rest = len(operations) - failed - 1
                rolled: list[str | Stat | ZkError | None] = [RolledBack() for _ in range(failed)]
                return [*rolled, error, *(RuntimeInconsistency() for _ in range(rest))], ()
            results.append(result)
            if change is not None:
                changes.append(change)
        return results, tuple(changes)

    def apply(self, zxid: int, changes: tuple[Change, ...]) -> None:
        """Make the changes of the transaction `zxid`, which another tree executed."""
        assert zxid == self.zxid + 1, (zxid, self.zxid)
        self.zxid = zxid
        for change in changes:
            if change.data is None:
                self._remove(change.path)
            elif change.is_new:
                self._add(change.path, change.data, change.owner)
            else:
                self._update(change.path, change.data)

    def _one(
        self, session: int, operation: Operation, undo: list[Callable[[], None]]
    ) -> tuple[str | Stat | None, Change | None]:
        match operation:
            case Create():
                return self._create(session, operation, undo)
            case Set(path, data, version):
                node = self._checked(path, version)
                old = (node.data, node.mzxid, node.version)
                self._update(path, data)
                undo.append(lambda: self._revert(node, *old))
                return self.get(path)[1], Change(path, data)
            case Delete(path, version):
                node = self._checked(path, version)
                if node.children:
                    raise NotEmpty(path)
                self._remove(path)
                undo.append(lambda: self._put_back(path, node))
                return None, Change(path, None)
            case Check(path, version):
                self._checked(path, version)
                return None, None

    def _create(self, session: int, operation: Create, undo: list[Callable[[], None]]) -> tuple[str, Change]:
        parent = self._node(_parent(operation.path))
        if parent.owner:
            raise NoChildrenForEphemerals(operation.path)
        path = operation.path + (f"{parent.created:010d}" if operation.sequence else "")
        if path in self.nodes:
            raise NodeExists(path)
        owner = session if operation.ephemeral else 0
        self._add(path, operation.data, owner)

        def back() -> None:
            self._remove(path)
            parent.created -= 1

        undo.append(back)
        return path, Change(path, operation.data, owner, True)

    def _node(self, path: str) -> Znode:
        node = self.nodes.get(path)
        if node is None:
            raise NoNode(path)
        return node

    def _checked(self, path: str, version: int) -> Znode:
        node = self._node(path)
        if version not in (-1, node.version):
            raise BadVersion(path)
        return node

    def _add(self, path: str, data: bytes, owner: int) -> None:
        parent = self.nodes[_parent(path)]
        parent.created += 1
        parent.children.add(path.rpartition("/")[2])
        self.nodes[path] = Znode(data, owner, self.zxid, self.zxid)
        if owner:
            self._ephemerals.setdefault(owner, set()).add(path)

    def _update(self, path: str, data: bytes) -> None:
        node = self.nodes[path]
        node.data, node.mzxid, node.version = data, self.zxid, node.version + 1

    def _remove(self, path: str) -> None:
        node = self.nodes.pop(path)
        self.nodes[_parent(path)].children.discard(path.rpartition("/")[2])
        if node.owner:
            self._ephemerals[node.owner].discard(path)

    def _put_back(self, path: str, node: Znode) -> None:
        self.nodes[path] = node
        self.nodes[_parent(path)].children.add(path.rpartition("/")[2])
        if node.owner:
            self._ephemerals[node.owner].add(path)

    def _revert(self, node: Znode, data: bytes, mzxid: int, version: int) -> None:
        node.data, node.mzxid, node.version = data, mzxid, version


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"
