"""A master's place in ZooKeeper: a node that lives and dies with it, and the word who leads.

Run as a program it *is* a master, as far as ZooKeeper can see: it keeps an ephemeral, sequential node `json.info_<10 digits>` with
the master's MasterInfo, and tells on its output who has the smallest number. A program of its own, because what happens to a
master's process must happen to its session: killed, the session lives on until it times out; stopped, it neither pings nor hears.
Like a master it ends when ZooKeeper was not to be reached for the session's time, or when its session is gone.

Input: one JSON order; then it waits for `close`, or for the end of the input (its owner died, so it dies without a word too).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from typing import Any, NoReturn

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import KazooException, NoNodeError
from kazoo.security import OPEN_ACL_UNSAFE, make_acl, make_digest_acl

logger = logging.getLogger(__name__)

PREFIX = "json.info_"
LOOK_SECONDS = 5.0  # also without a watch's word

_NODE = re.compile(r"json\.info_[0-9]{10}")


class _Member:
    """The program itself."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._path = order["path"]
        self._info = json.dumps(order["info"]).encode()
        self._session_s = order["session_timeout_ms"] / 1000
        auth = [("digest", f"{order['user']}:{order['secret']}")] if order["user"] else None
        self._acl = OPEN_ACL_UNSAFE
        if order["user"]:
            owner = make_digest_acl(order["user"], order["secret"], all=True)
            self._acl = [make_acl("world", "anyone", read=True), owner]
        self._hosts = order["hosts"]
        self._client = KazooClient(order["hosts"], timeout=self._session_s, auth_data=auth)
        self._client.add_listener(self._state_changed)
        self._connected = threading.Event()
        self._look = threading.Event()
        self._said = ""

    def run(self) -> NoReturn:
        """Register, then tell who leads, until the session is lost."""
        self._client.start_async()
        while not self._connected.wait(self._session_s):
            if not self._said:
                logger.warning("ZooKeeper at %s cannot be reached: no master leads until it can", self._hosts)
            self._say(None, False)
        self._client.ensure_path(self._path, acl=self._acl)
        self._me = self._client.create(
            f"{self._path}/{PREFIX}", self._info, acl=self._acl, ephemeral=True, sequence=True
        ).rsplit("/", 1)[1]
        while True:
            self._look.clear()
            try:
                self._tell()
            except KazooException as error:
                logger.warning("cannot ask who leads: %s", error)
            self._look.wait(LOOK_SECONDS)

    def close(self) -> None:
        """End the session."""
        self._client.stop()
        self._client.close()

    def _tell(self) -> None:
        children = self._client.get_children(self._path, watch=lambda event: self._look.set())
        nodes = sorted(name for name in children if _NODE.fullmatch(name))
        if self._me not in nodes:
            os._exit(1)  # the session was lost and the node with it
        while nodes:
            try:
                data, _ = self._client.get(f"{self._path}/{nodes[0]}")
            except NoNodeError:  # it went a moment ago; the watch will say so as well
                nodes.pop(0)
                continue
            self._say(json.loads(data), nodes[0] == self._me)
            return

    def _state_changed(self, state: str) -> None:
        if state == KazooState.CONNECTED:
            self._connected.set()
        elif self._connected.is_set():
            if state == KazooState.LOST:
                os._exit(1)
            self._connected.clear()
            threading.Thread(target=self._die_unless_connected, daemon=True).start()
        self._look.set()

    def _die_unless_connected(self) -> None:
        """Calls wait for a connection as long as it takes; a master does not."""
        if not self._connected.wait(self._session_s):
            os._exit(1)

    def _say(self, leader: dict[str, Any] | None, is_me: bool) -> None:
        text = json.dumps({"leader": leader, "is_me": is_me})
        if text != self._said:
            self._said = text
            print(text, flush=True)


def main() -> NoReturn:
    member = _Member(json.loads(sys.stdin.readline()))

    def watch() -> None:
        if sys.stdin.readline().strip() == "close":
            member.close()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    member.run()


if __name__ == "__main__":
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kazoo").setLevel(logging.ERROR)  # it warns at each attempt; here it is said once
    main()
