"""What stands for kazoo in the simulation: its client's and its handler's interface, as far as zk/ uses them.

So the product's own session, journal, reader and home run in virtual time, over the model of ZooKeeper. Callbacks come as
kazoo gives them: completions in order, watches in order, the two in any order; changes of state come at once.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

from kazoo import exceptions as kazoo
from kazoo.protocol.states import EventType, KazooState, KeeperState

from sim import zk_tree as z
from sim.process import Process
from sim.zk_client import Client, State
from sim.zookeeper import Children, Ensemble, Exists, Get, Multi, Request, Server, Sync

DISPATCH_MS_MAX = 2

_ERRORS: dict[type[z.ZkError], type[Exception]] = {
    z.NoNode: kazoo.NoNodeError,
    z.NodeExists: kazoo.NodeExistsError,
    z.BadVersion: kazoo.BadVersionError,
    z.NotEmpty: kazoo.NotEmptyError,
    z.NoChildrenForEphemerals: kazoo.NoChildrenForEphemeralsError,
    z.RolledBack: kazoo.RolledBackError,
    z.RuntimeInconsistency: kazoo.RuntimeInconsistency,
    z.ConnectionLoss: kazoo.ConnectionLoss,
    z.SessionExpired: kazoo.SessionExpiredError,
    z.SessionMoved: kazoo.SessionMovedError,
}


class QueueEmpty(Exception):
    """As queue.Empty."""


class Watched(NamedTuple):
    type: str
    path: str


class SimEvent:
    """As threading.Event, for the greenlets of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._is_set = False
        self._waiters: list[Callable[[Any], None]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake(True)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            self._process.block(lambda wake: self._await(wake, timeout))
        return self._is_set

    def _await(self, wake: Callable[[Any], None], timeout: float | None) -> None:
        self._waiters.append(wake)
        if timeout is not None:
            self._process.at(1 + timeout * 1000, lambda: self._give_up(wake))

    def _give_up(self, wake: Callable[[Any], None]) -> None:
        if wake in self._waiters:
            self._waiters.remove(wake)
            wake(False)


class SimQueue:
    """As queue.Queue, for the greenlets of one process."""

    def __init__(self, process: Process) -> None:
        self._items: collections.deque[Any] = collections.deque()
        self._filled = SimEvent(process)

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._filled.set()

    def get(self, timeout: float | None = None) -> Any:
        if not self._items:
            self._filled.clear()
            if not self._filled.wait(timeout):
                raise QueueEmpty
        return self._items.popleft()


class SimHandler:
    """As kazoo's handlers."""

    queue_empty = QueueEmpty
    timeout_exception = TimeoutError

    def __init__(self, process: Process) -> None:
        self.process = process
        self._completions = _Dispatcher(process)
        self._watches = _Dispatcher(process)

    def event_object(self) -> SimEvent:
        return SimEvent(self.process)

    def queue_impl(self) -> SimQueue:
        return SimQueue(self.process)

    def spawn(self, run: Callable[..., None], *arguments: Any) -> None:
        self.process.spawn(lambda: run(*arguments))

    def sleep_func(self, duration: float) -> None:
        self.process.sleep(duration * 1000)

    def complete(self, call: Callable[[], None]) -> None:
        self._completions.put(call)

    def watch(self, call: Callable[[], None]) -> None:
        self._watches.put(call)

    def create_connection(self, *arguments: Any, **more: Any) -> Any:
        raise ConnectionRefusedError("nobody is asked why in a simulation")


class _Dispatcher:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._free_ms = 0

    def put(self, call: Callable[[], None]) -> None:
        timeline = self._process.timeline
        self._free_ms = max(self._free_ms, timeline.now_ms + timeline.between(0, DISPATCH_MS_MAX))
        timeline.at(self._free_ms - timeline.now_ms, lambda: self._process.run(call))


class SimResult:
    """As kazoo's AsyncResult."""

    def __init__(self, handler: SimHandler) -> None:
        self.value: Any = None
        self.exception: Exception | None = None
        self._handler = handler
        self._done = handler.event_object()
        self._callbacks: list[Callable[[SimResult], None]] = []

    def ready(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._done.wait(timeout)

    def get(self, block: bool = True) -> Any:
        assert not block and self.ready()
        if self.exception is not None:
            raise self.exception
        return self.value

    def rawlink(self, callback: Callable[[SimResult], None]) -> None:
        self._callbacks.append(callback)
        if self.ready():
            self._dispatch()

    def settle(self, result: Any, translate: Callable[[Any], Any]) -> None:
        if isinstance(result, z.ZkError):
            self.exception = to_kazoo(result)
        else:
            self.value = translate(result)
        self._done.set()
        self._dispatch()

    def fail(self, error: Exception) -> None:
        self.exception = error
        self._done.set()
        self._dispatch()

    def _dispatch(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._handler.complete(lambda callback=callback: callback(self))  # type: ignore[misc]


class SimTransaction:
    """As kazoo's TransactionRequest: what failed is in the results, never raised."""

    def __init__(self, client: SimKazoo) -> None:
        self._client = client
        self._operations: list[z.Operation] = []

    def check(self, path: str, version: int) -> None:
        self._operations.append(z.Check(path, version))

    def create(self, path: str, value: bytes) -> None:
        self._operations.append(z.Create(path, value))

    def set_data(self, path: str, value: bytes, version: int = -1) -> None:
        self._operations.append(z.Set(path, value, version))

    def delete(self, path: str, version: int = -1) -> None:
        self._operations.append(z.Delete(path, version))

    def commit_async(self) -> SimResult:
        return self._client.request(
            Multi(tuple(self._operations)), lambda results: [_plain(r) for r in results]
        )


class SimKazoo:
    """As zk/client.py's Client: one session, requests without a connection fail at once."""

    last_failure = ""

    def __init__(self, process: Process, ensemble: Ensemble, timeout_ms: int) -> None:
        self.handler = SimHandler(process)
        self._process, self._ensemble, self._timeout_ms = process, ensemble, timeout_ms
        self._listeners: list[Callable[[str], None]] = []
        self._client: Client | None = None

    # --- the session

    @property
    def session_id(self) -> int:
        return self._client.session_id if self._client is not None else 0

    @property
    def server(self) -> Server | None:
        """The server it is connected to."""
        return self._client.server if self._client is not None else None

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.state is State.CONNECTED

    @property
    def asked_ms(self) -> int:
        assert self._client is not None
        return self._client.asked_ms

    @property
    def negotiated_ms(self) -> int:
        return self._timeout_ms if self.session_id else 0

    @property
    def client_state(self) -> str:
        is_expired = self._client is not None and self._client.state is State.LOST
        return str(KeeperState.EXPIRED_SESSION if is_expired else KeeperState.CLOSED)

    def add_listener(self, listener: Callable[[str], None]) -> None:
        self._listeners.append(listener)

    def start_async(self) -> None:
        self._client = Client(self._process, self._ensemble, self._timeout_ms, self._changed)

    def drop(self) -> None:
        if self._client is not None:
            self._client.reconnect()

    def stop(self) -> None:
        if self._client is not None:
            closed = self.handler.event_object()
            self._client.close(closed.set)
            closed.wait()

    def close(self) -> None:
        pass  # nothing is left of it

    def _changed(self, state: State) -> None:
        told = {State.CONNECTED: KazooState.CONNECTED, State.SUSPENDED: KazooState.SUSPENDED}
        for listener in self._listeners:
            listener(told.get(state, KazooState.LOST))

    # --- requests

    def sync_async(self, path: str) -> SimResult:
        return self.request(Sync(path), lambda _: path)

    def get_async(self, path: str, watch: Callable[[Any], None] | None = None) -> SimResult:
        return self.request(Get(path), _same, watch)

    def exists_async(self, path: str, watch: Callable[[Any], None] | None = None) -> SimResult:
        return self.request(Exists(path), _same, watch)

    def get_children_async(self, path: str, watch: Callable[[Any], None] | None = None) -> SimResult:
        return self.request(Children(path), _same, watch)

    def create_async(
        self,
        path: str,
        value: bytes = b"",
        *,
        acl: object = None,  # everybody may do everything here
        ephemeral: bool = False,
        sequence: bool = False,
    ) -> SimResult:
        return self._one(z.Create(path, value, ephemeral, sequence))

    def delete_async(self, path: str, version: int = -1) -> SimResult:
        return self._one(z.Delete(path, version))

    def transaction(self) -> SimTransaction:
        return SimTransaction(self)

    def request(
        self,
        request: Request,
        translate: Callable[[Any], Any],
        watch: Callable[[Any], None] | None = None,
        *,
        is_one: bool = False,
    ) -> SimResult:
        result = SimResult(self.handler)
        client = self._client
        if client is None or client.state is not State.CONNECTED:
            result.fail(kazoo.ConnectionLoss())
            return result
        fire = None if watch is None else lambda: self._fire(client, watch)

        def answered(answer: Any) -> None:
            result.settle(answer[0] if is_one and isinstance(answer, list) else answer, translate)

        client.submit(request, answered, fire)
        return result

    def _fire(self, client: Client, watch: Callable[[Any], None]) -> None:
        kind = EventType.CHANGED if client.state is State.CONNECTED else EventType.NONE
        self.handler.watch(lambda: watch(Watched(str(kind), "")))

    def _one(self, operation: z.Operation) -> SimResult:
        return self.request(Multi((operation,)), _same, is_one=True)


def to_kazoo(error: z.ZkError) -> Exception:
    return _ERRORS[type(error)](str(error))


def _plain(result: Any) -> Any:
    if isinstance(result, z.ZkError):
        return to_kazoo(result)
    return True if result is None else result


def _same(result: Any) -> Any:
    return result
