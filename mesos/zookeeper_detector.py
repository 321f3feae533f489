"""Where the leading master is, as Mesos' masters tell it in ZooKeeper.

Each master keeps an ephemeral node `json.info_<10 digits>` under one path, with its MasterInfo as JSON; the one with the
smallest number leads. Other children (`log_replicas`) say nothing about it.

Rule: what is not known changes nothing. While ZooKeeper cannot be asked, or the leader's node cannot be understood, the master
told last stays the master, since its stream is the better witness; only an answer without any master says that nobody leads.
Reads only, and never writes.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoNodeError
from kazoo.handlers.threading import SequentialThreadingHandler

from stoker.mesos.detector import Address
from stoker.mesos.errors import CallFailed
from stoker.zk.paths import ZkUrl

SESSION_TIMEOUT_MS = 10_000
ANSWER_TIMEOUT_MS = 5_000  # of ZooKeeper, for one question
LOOK_INTERVAL_MS = 10_000  # also without a watch's word: a lost one is no reason to follow a dead master
RETRY_INTERVAL_MS = 1_000
INFO_BYTES_MAX = 1024 * 1024

_INFO = re.compile(r"json\.info_([0-9]{10})")

logger = logging.getLogger(__name__)


class _Unreadable(Exception):
    """The leading master's node does not say where it is; the text says what is wrong with it."""


def leading_node(children: Iterable[str]) -> str | None:
    """Return the node of the master that leads; None: there is no master.

    >>> leading_node(["log_replicas", "json.info_0000000012", "json.info_0000000009"])
    'json.info_0000000009'
    """
    nodes = [(int(match[1]), name) for name in children if (match := _INFO.fullmatch(name))]
    return min(nodes)[1] if nodes else None


def master_address(data: bytes, *, by_name: bool = False) -> Address:
    """Return where the master of a node's data (MasterInfo) answers: its address, or with `by_name` its host's name.

    :raises ValueError: it is no MasterInfo.
    """
    try:
        info = json.loads(data[:INFO_BYTES_MAX])
        address = info["address"]
        host = address.get("hostname") if by_name else address.get("ip") or address.get("hostname")
        host = host or address["ip"]
        port = int(address["port"])
        if not isinstance(host, str) or not 1 <= port <= 65_535:
            raise ValueError(f"{host!r}:{port} is no address")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no MasterInfo with an address: {error!r}") from error
    return Address(host, port)


class ZooKeeperDetector:
    """Tell a driver who leads, now and whenever that changes; see the module. `by_name` as for `master_address`.

    `gevent`: the process is monkey-patched. One that was stopped is not started again.
    """

    def __init__(self, place: ZkUrl, *, by_name: bool = False, gevent: bool | None = None) -> None:
        self._place = place
        self._by_name = by_name
        self._gevent = is_patched() if gevent is None else gevent
        self._is_stopped = threading.Event()
        self._look = threading.Event()
        self._told: Address | None = None
        self._said = f"ZooKeeper at {_servers(place)} was not asked yet"
        self._thread: threading.Thread | None = None

    @property
    def reason(self) -> str:
        """Return why no master is known, or why that one may be an old one; "": ZooKeeper just named it."""
        return self._said

    def start(self, change_master: Callable[[str | None], None]) -> None:
        """Begin to look; `change_master` is called from a thread (greenlet) of the detector's own."""
        assert self._thread is None, "started twice"
        self._thread = threading.Thread(
            target=self._run, args=(change_master,), name="mesos master detector", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Tell no more; the thread ends soon. Any thread, any time."""
        self._is_stopped.set()
        self._look.set()

    def _run(self, change_master: Callable[[str | None], None]) -> None:
        while not self._is_stopped.is_set():
            client = _client(self._place, gevent=self._gevent)
            try:
                client.add_listener(self._state_changed)
                client.start(timeout=ANSWER_TIMEOUT_MS / 1000)
                self._watch(client, change_master)
            except (KazooException, client.handler.timeout_exception) as error:
                self._say(f"ZooKeeper at {_servers(self._place)} cannot be asked: {_reason(error)}")
            except Exception as error:
                # The thread's top frame: without it no other master would ever be found.
                self._say(f"our mistake while looking for the leading Mesos master: {error!r}")
                logger.exception("looking for the leading Mesos master failed; it is tried again")
            finally:
                _end(client)
            self._is_stopped.wait(RETRY_INTERVAL_MS / 1000)

    def _watch(self, client: KazooClient, change_master: Callable[[str | None], None]) -> None:
        while not self._is_stopped.is_set():
            self._look.clear()
            try:
                found = _ask(client, self._place.path, by_name=self._by_name, watch=self._changed)
            except _Unreadable as error:
                self._say(str(error))
                self._look.wait(LOOK_INTERVAL_MS / 1000)
                continue
            if self._is_stopped.is_set():
                return
            if found is None:
                self._say(f"no Mesos master leads at zk://{_servers(self._place)}{self._place.path}")
            else:
                self._said = ""
            if found != self._told:
                logger.info("the leading Mesos master is %s", found or "not known")
                self._told = found
                change_master(None if found is None else str(found))
            self._look.wait(LOOK_INTERVAL_MS / 1000)

    def _changed(self, event: Any) -> None:
        self._look.set()

    def _state_changed(self, state: Any) -> None:
        self._look.set()

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            logger.warning("%s", text)


def find_master(place: ZkUrl, *, by_name: bool = False, gevent: bool | None = None) -> Address:
    """Return the leading master, asked once.

    :raises CallFailed: ZooKeeper cannot be asked, or nobody leads.
    """
    client = _client(place, gevent=is_patched() if gevent is None else gevent)
    try:
        client.start(timeout=ANSWER_TIMEOUT_MS / 1000)
        found = _ask(client, place.path, by_name=by_name, watch=None)
    except (KazooException, client.handler.timeout_exception) as error:
        raise CallFailed(f"ZooKeeper at {_servers(place)} cannot be asked: {_reason(error)}") from error
    except _Unreadable as error:
        raise CallFailed(str(error)) from error
    finally:
        _end(client)
    if found is None:
        raise CallFailed(f"no Mesos master leads at zk://{_servers(place)}{place.path} now")
    return found


def is_patched() -> bool:
    """Return whether gevent has made this process' threads greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _ask(
    client: KazooClient, path: str, *, by_name: bool, watch: Callable[[Any], None] | None
) -> Address | None:
    """Return the leading master; None: there is none. `watch` is called once when that may have changed.

    :raises _Unreadable: somebody leads, and does not say where.
    """
    timeout_s = ANSWER_TIMEOUT_MS / 1000
    while True:
        try:
            children = client.get_children_async(path, watch=watch).get(timeout=timeout_s)
        except NoNodeError:
            if watch is not None and client.exists_async(path, watch=watch).get(timeout=timeout_s):
                continue  # it came in between
            return None
        node = leading_node(children)
        if node is None:
            return None
        try:
            data, _ = client.get_async(f"{path}/{node}").get(timeout=timeout_s)
            return master_address(data, by_name=by_name)
        except NoNodeError:
            continue  # its master went in between
        except ValueError as error:
            raise _Unreadable(
                f"ZooKeeper's node {path}/{node} of the leading Mesos master: {error}"
            ) from error


def _client(place: ZkUrl, *, gevent: bool) -> KazooClient:
    handler: Any = SequentialThreadingHandler()
    if gevent:
        from kazoo.handlers.gevent import SequentialGeventHandler  # only where the process is gevent's

        handler = SequentialGeventHandler()
    hosts = ",".join(f"{host}:{port}" for host, port in place.hosts)
    auth_data = [("digest", f"{place.user}:{place.secret}")] if place.user else None
    return KazooClient(
        hosts=hosts, timeout=SESSION_TIMEOUT_MS / 1000, handler=handler, auth_data=auth_data, logger=_quiet
    )


def _end(client: KazooClient) -> None:
    client.stop()
    client.close()


def _servers(place: ZkUrl) -> str:
    return ",".join(f"{host}:{port}" for host, port in place.hosts)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


# Kazoo logs each request at DEBUG level, credentials too, and each attempt to connect as a warning.
_quiet = logging.getLogger(f"{__name__}.kazoo")
_quiet.setLevel(logging.ERROR)
