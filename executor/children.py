"""Starting the keeper's children: a process with one end of a channel, and word when it ends."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import gevent

from stoker.executor.channel import Channel, channel_pair
from stoker.executor.outbox import Outbox

log = logging.getLogger(__name__)

END_TIMEOUT_S = 3.0
ASK_AFTER_MS = 1_000  # without a message: a child that says something is alive


class Child:
    """A child process: `python -m MODULE FD`. Runs on greenlets of a monkey-patched process.

    `on_message(message, fds)` is called for each message, in order; `on_end(reason)` once, when the process is gone, its
    channel is, or it hangs (`watch`), unless `end` was called before. Any child answers ping with pong.
    """

    def __init__(
        self,
        module: str,
        *,
        on_message: Callable[[dict[str, Any], list[int]], None],
        on_end: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` is added to this process's own."""
        mine, its = channel_pair()
        self.module = module
        self._on_message = on_message
        self._on_end: Callable[[str], None] | None = on_end
        self._silent_ms = 0
        self._is_asked = False
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(its.fileno())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )
        finally:
            its.close()
        self._channel = Channel(mine)
        self.outbox = Outbox(self._channel, lambda error: self._ended(f"cannot be told anything: {error}"))
        self._greenlets = [gevent.spawn(self._receive), gevent.spawn(self._wait)]

    def watch(self, passed_ms: int, patience_ms: int) -> None:
        """Look whether the child lives, `passed_ms` after the last time: one that is silent for `patience_ms` has ended for us.

        Only time in which the caller ran itself is to be counted: what stopped it too is not held against the child.
        """
        self._silent_ms += passed_ms
        if self._silent_ms >= patience_ms:
            self._ended(f"did not answer for {self._silent_ms / 1000:g} s: it hangs")
        elif self._silent_ms >= ASK_AFTER_MS and not self._is_asked:
            self._is_asked = True
            self.outbox.put({"t": "ping"})

    def end(self) -> None:
        """Close the channel, at which the process ends by itself; kill it if it does not."""
        self._on_end = None
        self.outbox.close()
        gevent.killall(self._greenlets)
        self._channel.close()
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("%s does not end, killed", self.module)
            self.process.kill()
            self._bury()

    def _bury(self) -> None:
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.error("%s waits for a disk that does not answer: it goes once that does", self.module)

    def _receive(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                self._silent_ms = 0
                if received[0]["t"] == "pong":
                    self._is_asked = False
                else:
                    self._on_message(*received)
        except Exception as error:
            log.exception("a message of %s", self.module)
            self._ended(f"could not be understood: {error!r}")
            return
        self._ended("closed its channel")

    def _wait(self) -> None:
        code = self.process.wait()
        self._ended(f"ended with {code}" if code >= 0 else f"was ended by signal {-code}")

    def _ended(self, reason: str) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(f"{self.module} (pid {self.process.pid}) {reason}")
