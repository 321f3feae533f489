"""A conversation with one executor: what ends it, and who may hold how many."""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import msgpack
import pytest

from stoker.client import connection as connection_module
from stoker.client.connection import Broken, HelloRefused, Pool, Silent, connect, refresh
from stoker.client.piece import Piece
from stoker.executor import wire
from stoker.executor.messages import SlotAddress

HELLO = wire.Hello(bytes(16), 1, 1, 1, 1, 1)


class Listener:
    """Accepts connections and lets `speak` answer each on a thread."""

    def __init__(self, listening: socket.socket, speak: Callable[[socket.socket], None]) -> None:
        self.listening = listening
        self.speak = speak
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                opened, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self.speak, args=(opened,), daemon=True).start()


def address(**fields: object) -> SlotAddress:
    defaults: dict[str, object] = dict(
        slot_id=1,
        launch_id=1,
        incarnation=1,
        host="127.0.0.1",
        port=0,
        socket_path="",
        abstract_socket="",
        boot_id="",
    )
    return SlotAddress(**(defaults | fields))  # type: ignore[arg-type]


def greet(opened: socket.socket, status: wire.HelloStatus = wire.HelloStatus.OK, detail: str = "") -> None:
    opened.recv(wire.HELLO_BYTES, socket.MSG_WAITALL)
    opened.sendall(wire.encode_hello_answer(wire.HelloAnswer(status, 1, bytes(16), 1, 1, 0, 0, detail)))


def answer(
    payload: bytes, *, status: int = 0, failed: int = 0, request_id: int = 1, op: int = wire.Op.READ
) -> bytes:
    return wire.ANSWER.pack(op, status, failed, request_id, len(payload), 0, 0) + payload


@pytest.fixture
def listen() -> Iterator[Callable[[Callable[[socket.socket], None]], SlotAddress]]:
    listeners = []

    def start(speak: Callable[[socket.socket], None]) -> SlotAddress:
        listening = socket.create_server(("127.0.0.1", 0))
        listeners.append(listening)
        Listener(listening, speak)
        return address(port=listening.getsockname()[1])

    yield start
    for listening in listeners:
        listening.close()


def test_a_refused_hello_says_why(listen) -> None:  # type: ignore[no-untyped-def]
    at = listen(lambda opened: greet(opened, wire.HelloStatus.LAUNCH, "launch 9 answers here"))
    with pytest.raises(HelloRefused, match="LAUNCH: launch 9") as caught:
        connect(at, HELLO, unix=False)
    assert caught.value.status == wire.HelloStatus.LAUNCH


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4, b"", b"STKR"])
def test_who_does_not_speak_our_protocol_is_left(listen, garbage: bytes) -> None:  # type: ignore[no-untyped-def]
    def speak(opened: socket.socket) -> None:
        opened.recv(wire.HELLO_BYTES, socket.MSG_WAITALL)
        opened.sendall(garbage)
        opened.close()

    with pytest.raises(OSError):
        connect(listen(speak), HELLO, unix=False)


def test_who_says_nothing_is_left(listen, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_MS", 100)
    held = []
    with pytest.raises(Silent, match="no byte came for 0.1 s"):
        connect(listen(held.append), HELLO, unix=False)


def test_who_greets_but_does_not_answer_is_left_after_the_silence(
    listen, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(connection_module, "ATTENTION_MS", 50)
    greeted = []

    def speak(opened: socket.socket) -> None:
        greet(opened)
        greeted.append(opened)

    connection = connect(listen(speak), HELLO, unix=False, silence_ms=400)
    with pytest.raises(Silent, match="no byte came for 0.4 s"):
        connection.receive_bytes(1)
    assert len(greeted) == 1 + 7, "each time it was silent for so long, but the last"
    connection.close()


def test_who_hangs_is_left_as_soon_as_it_does_not_greet(listen, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(connection_module, "ATTENTION_MS", 50)
    monkeypatch.setattr(connection_module, "GREETING_TIMEOUT_MS", 50)
    held: list[socket.socket] = []

    def speak(opened: socket.socket) -> None:
        if not held:
            greet(opened)
        held.append(opened)

    at = listen(speak)
    views = [memoryview(bytearray(10)) for _ in range(2)]
    pieces = [Piece(0, 0, 10, view, 0) for view in views]
    for receive in (lambda c: c.receive_bytes(10), lambda c: c.receive_ranges(pieces)):
        held.clear()
        connection = connect(at, HELLO, unix=False)
        with pytest.raises(Silent, match="no byte came for 0.05 s"):
            receive(connection)
        connection.close()


def test_who_is_another_now_is_told_apart_from_who_hangs(listen, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(connection_module, "ATTENTION_MS", 50)
    status = iter([wire.HelloStatus.OK, wire.HelloStatus.LAUNCH])
    held = []

    def speak(opened: socket.socket) -> None:
        greet(opened, next(status))
        held.append(opened)

    connection = connect(listen(speak), HELLO, unix=False)
    with pytest.raises(HelloRefused):
        connection.receive_into(memoryview(bytearray(10)))
    connection.close()


@pytest.mark.parametrize(
    "said, what",
    [
        (answer(b"", request_id=7), "answer 7 of op 1 to request 1"),
        (answer(b"", op=wire.Op.PING), "of op 5 to request 1"),
        (answer(struct.pack("<I", 2**31) + b"x" * 10, failed=1), "a list of failures of 2147483648 bytes"),
        (answer(struct.pack("<I", 3) + b"\xc1\xc1\xc1", failed=1), "not msgpack"),
        (answer(struct.pack("<I", 1) + msgpack.packb([]), failed=1), "0 failures listed, 1 announced"),
    ],
)
def test_an_answer_that_makes_no_sense_ends_it(listen, said: bytes, what: str) -> None:  # type: ignore[no-untyped-def]
    def speak(opened: socket.socket) -> None:
        greet(opened)
        opened.recv(wire.REQUEST.size)
        opened.sendall(said)

    connection = connect(listen(speak), HELLO, unix=False)
    request_id = connection.send(wire.Op.READ, [])
    with pytest.raises(Broken, match=what):
        connection.receive_failures(connection.receive_answer(request_id, wire.Op.READ))
    connection.close()


def test_short_answers_are_never_taken(listen) -> None:  # type: ignore[no-untyped-def]
    """The executor dies in the middle of the bytes: each way of receiving notices."""

    def speak(opened: socket.socket) -> None:
        greet(opened)
        opened.sendall(b"x" * 1000)
        opened.close()

    at = listen(speak)
    for views in ([None] * 2, [bytearray(2000)], [bytearray(300) for _ in range(5)], [None] * 5):
        pieces = [Piece(0, 0, len(v) if v else 700, memoryview(v) if v else None, 0) for v in views]
        connection = connect(at, HELLO, unix=False)
        with pytest.raises(Broken, match="ended"):
            connection.receive_ranges(pieces)
        connection.close()


def test_small_ranges_are_received_together(listen) -> None:  # type: ignore[no-untyped-def]
    sent = os.urandom(500_000)

    def speak(opened: socket.socket) -> None:
        greet(opened)
        for start in range(0, len(sent), 33_333):
            opened.sendall(sent[start : start + 33_333])

    sizes = [1, 100, 7, 200_000, 5, 99_887, 100_000, 50_000, 50_000]
    assert sum(sizes) == len(sent)
    buffers = [bytearray(size) for size in sizes]
    connection = connect(listen(speak), HELLO, unix=False)
    connection.receive_ranges([Piece(0, 0, len(b), memoryview(b), 0) for b in buffers])
    assert b"".join(buffers) == sent
    connection.close()


def test_a_pool_is_bounded_and_lets_the_next_thread_wait(listen, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(connection_module, "BUSY_MAX", 2)
    pool = Pool(listen(greet), HELLO, unix=False)
    first, second = pool.take(), pool.take()
    third = []
    thread = threading.Thread(target=lambda: third.append(pool.take()))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive() and first is not second
    pool.give(first)
    thread.join(90)
    assert third == [first]
    pool.discard(first)
    pool.give(second)
    monkeypatch.setattr(connection_module, "IDLE_MAX", 0)
    taken = pool.take()
    assert taken is second
    pool.give(taken)
    assert taken.socket.fileno() == -1
    pool.clear()


def test_refresh_refuses_what_is_no_map(listen) -> None:  # type: ignore[no-untyped-def]
    def speak(opened: socket.socket) -> None:
        greet(opened)
        for request_id, payload in enumerate([msgpack.packb({"slots": []}), msgpack.packb([1])], start=1):
            opened.recv(wire.REQUEST.size)
            opened.sendall(answer(payload, op=wire.Op.REFRESH, request_id=request_id))

    connection = connect(listen(speak), HELLO, unix=False)
    assert refresh(connection) == {"slots": []}
    with pytest.raises(Broken, match="not a map"):
        refresh(connection)
    connection.close()


def test_a_socket_path_may_be_longer_than_the_kernel_takes(tmp_path: pathlib.Path) -> None:
    """A Mesos sandbox's has 201 characters."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    listening = socket.socket(socket.AF_UNIX)
    held = os.open(deep, os.O_PATH)
    listening.bind(f"/proc/self/fd/{held}/x.sock")
    os.close(held)
    listening.listen()
    Listener(listening, greet)
    connection = connect(address(socket_path=str(deep / "x.sock")), HELLO, unix=True)
    assert connection.is_unix
    connection.close()
    listening.close()


def test_where_the_unix_socket_is_looked_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = address(socket_path="/tmp/stoker-0/e1.sock", abstract_socket="stoker-e1")
    assert connection_module.socket_targets(at) == ["/tmp/stoker-0/e1.sock", b"\0stoker-e1"]
    monkeypatch.setenv("STOKER_SOCKET", str(tmp_path))
    assert connection_module.socket_targets(at) == [str(tmp_path / "e1.sock"), b"\0stoker-e1"]
    monkeypatch.setenv("STOKER_SOCKET", "/run/other.sock")
    assert connection_module.socket_targets(at) == ["/run/other.sock", b"\0stoker-e1"]
