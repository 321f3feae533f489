"""A master's seat: its address, its place in ZooKeeper, and what a caller is told while it does not lead.

There is one machine of a master, whoever leads has it; the others know who leads, or not, and send callers there. A master that
leads anew knows nothing for a moment (503), as a real one that recovers. A master whose session in ZooKeeper ends, ends with it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import gevent
from gevent import socket
from gevent.event import Event

from stoker.mesos.embedded.agents import loopback_for_any
from stoker.mesos.embedded.config import Config
from stoker.mesos.embedded.core.calls import Refused
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.values import MasterSpec
from stoker.mesos.embedded.http import Handler, Server, listen, listen_steadily
from stoker.mesos.embedded.presence import Presence

logger = logging.getLogger(__name__)

RECOVERY_MS = 200  # from the election to the first call that is taken


class Role(Enum):
    DEAD = "dead"
    STANDBY = "standby"
    RECOVERING = "recovering"
    LEADING = "leading"


class Elections(Protocol):
    """Who is told of masters' fates."""

    def elected(self, seat: MasterSeat) -> None: ...
    def ended(self, seat: MasterSeat) -> None: ...


class MasterSeat:
    """One master from outside; `number` counts from 1."""

    def __init__(self, config: Config, number: int, elections: Elections, handler: Handler) -> None:
        self.number = number
        self.role = Role.DEAD
        self._config = config
        self._elections = elections
        self._handler = handler
        self._server: Server | None = None
        self._presence: Presence | None = None
        self._leader: Message | None = None
        self._port = config.port if number == 1 else 0
        self._recovery: gevent.Greenlet | None = None
        self.knows_leader = Event()
        self.spec = MasterSpec("", "", "", 0)

    @property
    def is_leading(self) -> bool:
        return self.role in (Role.LEADING, Role.RECOVERING)

    def listen(self, avoid: Callable[[int], bool]) -> socket.socket:
        """Take the address: the same as before, if it had one, else a free port for which `avoid` is false.

        :raises OSError: it cannot be had.
        """
        if self._port:
            return listen(self._config.host, self._port)
        listener = listen_steadily(self._config.host, avoid=avoid)
        self._port = listener.getsockname()[1]
        return listener

    def prepare(self) -> MasterSpec:
        """Take a new id; return who this master is going to be."""
        assert self.role is Role.DEAD
        ip = loopback_for_any(self._config.host)
        self.spec = MasterSpec(str(uuid.uuid4()), ip, ip, self._port, self._config.master_domain())
        return self.spec

    def start(self, listener: socket.socket) -> None:
        """Begin, as `prepare` said: alone it leads at once, else ZooKeeper decides."""
        assert self.role is Role.DEAD
        self._leader = None
        self.role = Role.STANDBY
        self._server = Server(listener, self._handler)
        if self._config.zk is None:
            self._elect()
        else:
            timeout_ms = self._config.zk_session_timeout_ms
            self._presence = Presence(
                self._config.zk, self.spec.info(), timeout_ms, self._told, self._session_ended
            )
        self._server.start()

    def move(self, port: int) -> None:
        """Have another port from the next start on."""
        assert self.role is Role.DEAD
        self._port = port

    def stop(self, *, how: str, block: bool = False) -> None:
        """End it: `how` is "kill" (its session times out) or "close" (its session ends)."""
        self.role = Role.DEAD
        if self._recovery is not None:
            self._recovery.kill(block=False)
        presence, self._presence = self._presence, None
        if presence is not None:
            presence.close() if how == "close" else presence.kill()
        server, self._server = self._server, None
        if server is not None:
            server.stop(block=block)

    def freeze(self) -> None:
        """Do nothing, as a process that got SIGSTOP: connections stay open."""
        if self._server is not None:
            self._server.freeze()
        if self._presence is not None:
            self._presence.freeze()

    def thaw(self) -> None:
        if self._presence is not None:
            self._presence.thaw()
        if self._server is not None:
            self._server.thaw()

    def require_leading(self, path: str) -> None:
        """Check that a call to `path` may be taken here.

        :raises Refused: 307 to who leads, or 503.
        """
        if self.role is Role.LEADING:
            return
        if self.role is Role.RECOVERING:
            raise Refused(503, "Master has not finished recovery")
        raise Refused(307, "", (("Location", f"//{self.leader_endpoint()}/master{path}"),))

    def leader_endpoint(self) -> str:
        """Return HOST:PORT of who leads, as this master believes.

        :raises Refused: 503, it knows of none.
        """
        leader = self.spec.info() if self.is_leading else self._leader
        if leader is None:
            raise Refused(503, "No leader elected")
        return f"{leader['address']['hostname']}:{leader['address']['port']}"

    def _elect(self) -> None:
        logger.info("master=%d id=%s at %s leads", self.number, self.spec.master_id, self.spec.endpoint)
        self.role = Role.LEADING
        self._elections.elected(self)

    def _recover(self) -> None:
        gevent.sleep(RECOVERY_MS / 1000)
        self._recovery = None
        self._elect()

    def _told(self, leader: Message | None, is_me: bool) -> None:
        self._leader = leader
        if leader is not None:
            self.knows_leader.set()
        if is_me and self.role is Role.STANDBY:
            self.role = Role.RECOVERING
            self._recovery = gevent.spawn(self._recover)
        elif not is_me and self.is_leading:
            logger.warning("master=%d does not lead any more: it ends", self.number)
            gevent.spawn(self._elections.ended, self)  # not from the greenlet that its end kills

    def _session_ended(self) -> None:
        logger.warning("master=%d lost its session in ZooKeeper: it ends", self.number)
        self._presence = None
        self._elections.ended(self)
