"""A master's place in ZooKeeper, from the side of the shell: the program `zookeeper`, one for each master.

Whatever happens to a master's process happens to its program as well, so that its session lives and dies as a real one's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import gevent
from gevent.fileobject import FileObjectPosix

from stoker.mesos.embedded.core.codec import Message
from stoker.zk.paths import ZkUrl

END_SECONDS_MAX = 2  # that a program gets to end its session


class Presence:
    """The program of one master. `on_leader` gets the leader's MasterInfo (None: not known) and whether
    that is this one.

    `on_end` is called once if the program ends by itself. Neither is called after `kill` or `close`.
    """

    def __init__(
        self,
        place: ZkUrl,
        info: Message,
        session_timeout_ms: int,
        on_leader: Callable[[Message | None, bool], None],
        on_end: Callable[[], None],
    ) -> None:
        order = {
            "hosts": ",".join(f"{host}:{port}" for host, port in place.hosts),
            "path": place.path,
            "user": place.user,
            "secret": place.secret,
            "session_timeout_ms": session_timeout_ms,
            "info": info,
        }
        self._on_leader = on_leader
        self._on_end = on_end
        command = [sys.executable, "-m", "stoker.mesos.embedded.zookeeper"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input = FileObjectPosix(self._process.stdin, "wb")
        self._output = FileObjectPosix(self._process.stdout, "rb")
        self._input.write(json.dumps(order).encode() + b"\n")
        self._input.flush()
        self._reader = gevent.spawn(self._read)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does: the node stays until the session times out."""
        self._end(lambda: self._process.kill())

    def close(self) -> None:
        """End the session: the node goes at once, as far as ZooKeeper is there."""
        self._end(lambda: self._input.write(b"close\n") and self._input.flush())

    def _end(self, how: Callable[[], object]) -> None:
        self._reader.kill()
        try:
            how()
            self._input.close()
        except OSError:  # it is gone already
            pass
        with gevent.Timeout(END_SECONDS_MAX, False):
            while self._process.poll() is None:
                gevent.sleep(0.01)
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _read(self) -> None:
        for line in self._output:
            told = json.loads(line)
            self._on_leader(told["leader"], told["is_me"])
        self._process.kill()
        self._process.wait()
        self._on_end()
