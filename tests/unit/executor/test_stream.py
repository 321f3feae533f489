"""A data server's socket, on gevent in this process."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from stoker.executor import stream as stream_module
from stoker.executor.stream import FINISH_TIMEOUT_S, Stalled, Stream


def test_a_peer_that_never_stops_talking_is_left_in_the_end() -> None:
    ours, theirs = socket.socketpair()
    stream = Stream(ours)

    def talk() -> None:
        try:
            while True:
                theirs.sendall(b"x" * 2**20)
        except OSError:
            return

    thread = threading.Thread(target=talk)
    thread.start()
    begun = time.monotonic()
    stream.finish()
    took = time.monotonic() - begun
    stream.cut()
    stream.close()
    thread.join()
    theirs.close()
    assert took > FINISH_TIMEOUT_S * 0.9


def test_a_peer_that_takes_its_bytes_in_drops_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PACE_BYTES_PER_S", 8 * 2**20)
    ours, theirs = socket.socketpair()
    stream = Stream(ours, stall_timeout_ms=2_000)

    def sip() -> None:
        while theirs.recv(65_536):
            time.sleep(0.05)  # never as long as a stall

    thread = threading.Thread(target=sip)
    thread.start()
    fd = os.memfd_create("test")
    os.ftruncate(fd, 4 * 2**20)
    try:
        with pytest.raises(Stalled, match="bytes in"):
            for _ in range(1_000):
                stream.send_file(fd, 0, 4 * 2**20)
    finally:
        os.close(fd)
        stream.cut()
        thread.join()
    stream.close()
    theirs.close()


def test_a_host_that_is_gone_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    stream = Stream(ours)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    stream.close()
    theirs.close()
