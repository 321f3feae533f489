"""An agent's seat: its directory, its address, and what of it outlives its process.

Owns `<work_dir>/agentN`: sandboxes (`slaves`), persistent volumes (`volumes`), the fetcher's cache (`fetch`) and what the agent
must find again (`meta`), always written whole under another name and renamed. An agent keeps its address for ever: executors that
outlive it come back to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent import socket

from stoker.mesos.embedded.config import Config
from stoker.mesos.embedded.core.resources import Resources
from stoker.mesos.embedded.core.values import AgentSpec
from stoker.mesos.embedded.http import Handler, Server, listen, listen_steadily

BIND_SECONDS_MAX = 5  # that an address may still be in use after a restart

_POLL_SECONDS = 0.05


class AgentSeat:
    """One agent from outside; `number` counts from 1. Its process is up while it has a server."""

    def __init__(self, config: Config, index: int, root: Path) -> None:
        self.number = index + 1
        self.work_dir = root / f"agent{self.number}"
        self._config = config
        self._index = index
        self._host = config.agent_listen_ip(index)
        self._listener: socket.socket | None = None
        self._server: Server | None = None
        self._kept: dict[str, Any] = _read(self._path("agent.json")) or {}
        self.resources = config.agent_resources(index)

    @property
    def is_up(self) -> bool:
        return self._server is not None

    @property
    def agent_id(self) -> str:
        """The id that a master gave it, or ""."""
        return str(self._kept.get("agent_id", ""))

    @property
    def cache_dir(self) -> Path:
        return self.work_dir / "fetch"

    @property
    def spec(self) -> AgentSpec:
        assert self._kept.get("port")
        return AgentSpec(
            agent_id=self.agent_id,
            number=self.number,
            hostname=self._config.agent_hostname(self._index),
            ip=loopback_for_any(self._host),
            port=self._kept["port"],
            resources=self.resources,
            work_dir=str(self.work_dir),
            attributes=self._config.agent_attributes(self._index),
            domain=self._config.agent_domain(self._index),
        )

    def listen(self, avoid: Callable[[int], bool]) -> None:
        """Take the address: the one it had before, or else any free port for which `avoid` is false.

        :raises OSError: it cannot be had.
        """
        port = self._kept.get("port", 0)
        if port and avoid(port):
            port = 0
        if port:
            with contextlib.suppress(OSError):
                self._listener = _listen_again(self._host, port)
        if self._listener is None:
            self._listener = listen_steadily(self._host, avoid=avoid)
        self._keep(port=self._listener.getsockname()[1])

    def open(self, handler: Handler) -> None:
        """Answer calls.

        :raises OSError: somebody else has the address by now.
        """
        assert self._server is None
        listener, self._listener = self._listener, None
        self._server = Server(listener or _listen_again(self._host, self._kept["port"]), handler)
        self._server.start()

    def close(self, *, block: bool = False) -> None:
        """Refuse connections and cut those that there are."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(block=block)

    def freeze(self) -> None:
        if self._server is not None:
            self._server.freeze()

    def thaw(self) -> None:
        if self._server is not None:
            self._server.thaw()

    def changed_resources(self, text: str) -> Resources:
        """Return what it would offer instead: what `text` names, and all else as configured.

        :raises ResourceError: it is no list of resources.
        """
        return self._config.agent_resources(self._index, text)

    def name(self, agent_id: str) -> None:
        """Keep the id that a master gave."""
        self._keep(agent_id=agent_id)

    def wipe(self) -> None:
        """Forget everything but the address, as if the work_dir was removed."""
        for name in ("slaves", "volumes", "meta", "fetch"):
            discard(self.work_dir / name)
        self._kept = {"port": self._kept["port"]}
        self._keep()

    def read_checkpoint(self) -> Any:
        """Return what `write_checkpoint` was last given, or None."""
        return _read(self._path("checkpoint.json"))

    def write_checkpoint(self, value: Any) -> None:
        write_json(self._path("checkpoint.json"), value)

    def _keep(self, **values: object) -> None:
        self._kept |= values
        write_json(self._path("agent.json"), self._kept)

    def _path(self, name: str) -> Path:
        return self.work_dir / "meta" / name


def discard(path: Path) -> None:
    """Remove a directory: it is gone from its place at once, and from the disk as soon as that is done."""
    trash = path.with_name(f".{path.name}.{uuid.uuid4().hex}.removed")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, trash)
        gevent.get_hub().threadpool.spawn(shutil.rmtree, trash, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value))
    fresh.replace(path)


def loopback_for_any(host: str) -> str:
    """Return an address by which a listener on `host` is reached from this machine."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def _listen_again(host: str, port: int) -> socket.socket:
    with gevent.Timeout(BIND_SECONDS_MAX, OSError(f"{host}:{port} is in use")):
        while True:
            try:
                return listen(host, port)
            except OSError:
                gevent.sleep(_POLL_SECONDS)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
