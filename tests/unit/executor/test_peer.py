"""The filler's client of the data port: against a real data server, and against whoever else may answer at its address."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import msgpack
import pytest
from crc32c import crc32c

from stoker.executor import peer as peer_module
from stoker.executor import wire
from stoker.executor.block import PAGE_BYTES
from stoker.executor.peer import Hung, Peer, PeerError, PeerRefused, PeerSilent
from support.data_servers import DataServer, running_data_server
from support.waiting import DEADLINE_S

BLOCK_BYTES = 1024 * 1024
CONTENT = os.urandom(BLOCK_BYTES - 4_000 + 64 - (BLOCK_BYTES - 4_000) % 64)


@pytest.fixture(scope="module")
def server() -> Iterator[DataServer]:
    with running_data_server() as server:
        server.put_dataset(block_bytes=BLOCK_BYTES)
        server.put_block(0, CONTENT)
        server.put_block(1, CONTENT, valid=[(0, 640), (6400, 64_000)])
        yield server


def read(peer: Peer, index: int, *ranges: tuple[int, int]) -> tuple[list[int], bytes]:
    buffer = bytearray(sum(stop - start for start, stop in ranges))
    failed = peer.read(index, ranges, memoryview(buffer), local_only=True)
    count = sum(stop - start for n, (start, stop) in enumerate(ranges) if n not in failed)
    assert not any(buffer[count:])
    return failed, bytes(buffer[:count])


class TestADataServer:
    def test_ranges_come_one_after_the_other(self, server: DataServer) -> None:
        with Peer(server.host, server.port, server.hello(caller=wire.Caller.EXECUTOR)) as peer:
            assert read(peer, 0, (0, len(CONTENT))) == ([], CONTENT)
            assert read(peer, 0, (64, 128), (0, 64)) == ([], CONTENT[64:128] + CONTENT[:64])
            assert read(peer, 1, (6400, 6464)) == ([], CONTENT[6400:6464])

    def test_failed_ranges_are_left_out(self, server: DataServer) -> None:
        with Peer(server.host, server.port, server.hello()) as peer:
            failed, data = read(peer, 1, (0, 64), (640, 6400), (6400, 6464), (64_000, 65_000))
            assert failed == [1, 3] and data == CONTENT[:64] + CONTENT[6400:6464]
            assert read(peer, 7, (0, 64)) == ([0], b"")
            assert read(peer, 0, (0, 64)) == ([], CONTENT[:64])  # the connection is as good as before

    def test_checksums_of_a_full_block_only(self, server: DataServer) -> None:
        pages = -(-len(CONTENT) // PAGE_BYTES)
        with Peer(server.host, server.port, server.hello()) as peer:
            sums = peer.page_checksums(0, pages)
            assert sums == [
                crc32c(CONTENT[at : at + PAGE_BYTES]) for at in range(0, len(CONTENT), PAGE_BYTES)
            ]
            with pytest.raises(PeerRefused, match="not full"):
                peer.page_checksums(1, pages)
            assert read(peer, 0, (0, 64)) == ([], CONTENT[:64])
            with pytest.raises(PeerError, match="bytes of checksums"):
                peer.page_checksums(0, pages + 1)

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"cluster": bytes(16)}, "CLUSTER"),
            ({"launch_id": 8}, "LAUNCH"),
            ({"incarnation": 8}, "LAUNCH"),
            ({"dataset_id": 9}, "DATASET"),
            ({"version_min": 99, "version_max": 99}, "VERSION"),
        ],
    )
    def test_a_refused_hello_says_why(self, server: DataServer, fields: dict[str, object], text: str) -> None:
        with pytest.raises(PeerError, match=f"refused: {text}"):
            Peer(server.host, server.port, server.hello(**fields))


def hello() -> wire.Hello:
    return wire.Hello(bytes(16), 1, 1, 1, 1, 1)


def accept(answer: wire.HelloAnswer | None = None) -> bytes:
    return wire.encode_hello_answer(answer or wire.HelloAnswer(wire.HelloStatus.OK, 1, bytes(16), 1, 1, 0, 0))


@contextlib.contextmanager
def impostor(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen; `behave` has the one connection. Yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    behave(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
    thread.join(DEADLINE_S)


def answering(*parts: bytes) -> Callable[[socket.socket], None]:
    """Return a behaviour: say `parts`, one after each thing that is heard, then wait for the end."""

    def behave(connection: socket.socket) -> None:
        for part in parts:
            connection.recv(65536)
            connection.sendall(part)
        connection.recv(65536)

    return behave


def answer(
    payload: bytes, *, op: int = 1, failed: int = 0, request_id: int = 1, length: int | None = None
) -> bytes:
    count = len(payload) if length is None else length
    return wire.ANSWER.pack(op, 0, failed, request_id, count, 0, 0) + payload


def failures(*entries: object) -> bytes:
    listed = msgpack.packb(list(entries))
    return struct.pack("<I", len(listed)) + listed


class TestWhoeverElseAnswers:
    def test_nobody(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(PeerError, match="refused"):
                Peer("127.0.0.1", unused.getsockname()[1], hello())

    @pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100, b"\0" * 200])
    def test_another_service(self, said: bytes) -> None:
        with impostor(answering(said)) as port, pytest.raises(PeerError, match="does not speak"):
            Peer("127.0.0.1", port, hello())

    def test_somebody_who_says_nothing(self) -> None:
        with impostor(answering(b"")) as port:
            with pytest.raises(PeerError, match="timed out"):
                Peer("127.0.0.1", port, hello(), timeout_ms=200)

    @pytest.mark.parametrize(
        ("said", "text"),
        [
            (answer(b"x" * 50, length=100), "ended the connection"),
            (answer(b"x" * 101), "101 bytes where 100"),
            (answer(b"x" * 99), "99 bytes where 100"),
            (answer(b"x" * 100, op=3), "something else"),
            (answer(b"x" * 100, request_id=2), "something else"),
            (answer(struct.pack("<I", 2**31), failed=1), "list of failures of"),
            (answer(struct.pack("<I", 3) + b"\xc1\xc1\xc1", failed=1), "is none"),
            (answer(failures(1), failed=1), "is none"),
            (answer(failures([0, 1, "gone"]) + b"x", failed=1), "bytes where 0"),
            (b"", "ended the connection"),
        ],
    )
    def test_somebody_who_breaks_the_protocol(self, said: bytes, text: str) -> None:
        def behave(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(accept())
            connection.recv(65536)
            connection.sendall(said)

        with impostor(behave) as port, Peer("127.0.0.1", port, hello()) as peer:
            with pytest.raises(PeerError, match=text):
                peer.read(0, [(0, 100)], memoryview(bytearray(100)), local_only=True)

    def test_a_read_ends_when_it_is_cut_from_another_thread(self) -> None:
        with impostor(answering(accept())) as port, Peer("127.0.0.1", port, hello()) as peer:
            other = threading.Timer(0.1, peer.cut)
            other.start()
            with pytest.raises(PeerError):
                peer.read(0, [(0, 100)], memoryview(bytearray(100)), local_only=True)
            other.join()
            assert peer._socket.fileno() >= 0, "its number is used by nobody else while it may be read from"
            peer.cut()


class TestWhoeverIsSilent:
    """A peer may take an under store's time to answer, but it greets at once."""

    PATIENCE_MS = 700

    @contextlib.contextmanager
    def serving(self, greetings: int, *, answers: bool) -> Iterator[int]:
        """Greet so many times, and then answer the first request or nobody any more. Yields the port."""

        def serve() -> None:
            with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
                first = opened.enter_context(listener.accept()[0])
                first.recv(65536)
                first.sendall(accept())
                first.recv(65536)
                for _ in range(greetings - 1):
                    again = opened.enter_context(listener.accept()[0])
                    again.recv(65536)
                    again.sendall(accept())
                if answers:
                    first.sendall(answer(b"x" * 100))
                first.recv(1)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            yield listener.getsockname()[1]
        thread.join(DEADLINE_S)

    def test_who_greets_is_waited_for(self) -> None:
        buffer = memoryview(bytearray(100))
        with self.serving(3, answers=True) as port:
            with Peer("127.0.0.1", port, hello(), patience_ms=self.PATIENCE_MS) as peer:
                assert peer.read(0, [(0, 100)], buffer, local_only=False) == []
        assert bytes(buffer) == b"x" * 100

    def test_who_does_not_is_left(self) -> None:
        with self.serving(2, answers=False) as port:
            with Peer("127.0.0.1", port, hello(), patience_ms=self.PATIENCE_MS) as peer:
                with pytest.raises(PeerSilent):
                    peer.read(0, [(0, 100)], memoryview(bytearray(100)), local_only=False)

    def test_who_hangs_is_remembered_for_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hung = Hung()
        hung.add("a")
        assert "a" in hung and "b" not in hung
        monkeypatch.setattr(peer_module, "HUNG_MS", 0)
        hung.add("a")
        assert "a" not in hung
        for number in range(2 * peer_module.HUNG_MAX):
            hung.add(number)
        assert len(hung._until) == peer_module.HUNG_MAX
