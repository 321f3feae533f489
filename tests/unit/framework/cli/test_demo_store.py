"""The demo's web server: what other programs' clients may rely on."""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from stoker.framework.cli.demo_store import Throttle, parse_delay_ms, parse_rate
from support.waiting import DEADLINE_S

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "sub" / "__pycache__").mkdir(parents=True)
    (tmp_path / "sub" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (tmp_path / "sub" / "a b&<c>.bin").write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    return tmp_path


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "stoker.framework.cli.demo_store", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(DEADLINE_S)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def url(root: pathlib.Path) -> Iterator[str]:
    process, url = start("--exclude", "__pycache__", str(root))
    yield url
    stop(process)


class Caller:
    """One connection that stays open."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE_S)

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, headers=named)
        answer = self.connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


FILE = "/sub/a%20b%26%3Cc%3E.bin"


def test_files_ranges_and_conditions_on_one_connection(url: str, root: pathlib.Path) -> None:
    caller = Caller(url)
    status, headers, body = caller.ask("GET", FILE)
    assert (status, body, headers["Accept-Ranges"]) == (200, CONTENT, "bytes")
    etag, modified = headers["ETag"], headers["Last-Modified"]
    assert etag.startswith('"') and caller.ask("HEAD", FILE) == (200, headers, b"")
    size = len(CONTENT)
    for wanted, start_, stop_ in (
        ("0-0", 0, 1),
        ("5-9", 5, 10),
        ("100-", 100, size),
        ("-7", size - 7, size),
        (f"9-{size * 2}", 9, size),
    ):
        status, headers, body = caller.ask("GET", FILE, Range=f"bytes={wanted}")
        assert (status, body) == (206, CONTENT[start_:stop_])
        assert headers["Content-Range"] == f"bytes {start_}-{stop_ - 1}/{size}"
    assert caller.ask("GET", FILE, Range=f"bytes={size}-")[0] == 416
    assert caller.ask("GET", FILE, Range="bytes=1-2,4-5")[::2] == (200, CONTENT)
    assert caller.ask("GET", FILE, If_Match=f'"other", {etag}')[0] == 200
    assert caller.ask("GET", FILE, If_Match='"other"')[::2] == (412, b"")
    assert caller.ask("GET", FILE, If_None_Match=etag)[::2] == (304, b"")
    assert caller.ask("GET", FILE, If_Unmodified_Since=modified)[0] == 200
    assert caller.ask("GET", FILE, If_Unmodified_Since="Thu, 01 Jan 1970 00:00:00 GMT")[0] == 412
    path = root / "sub" / "a b&<c>.bin"
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(0, 10**18))
    assert caller.ask("GET", FILE, If_Match=etag)[0] == 412


def test_index_pages_and_what_is_left_out(url: str) -> None:
    caller = Caller(url)
    status, headers, body = caller.ask("GET", "/sub/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert b'href="a%20b%26%3Cc%3E.bin">a b&amp;&lt;c&gt;.bin<' in body and b"pycache" not in body
    assert b'href="sub/"' in caller.ask("GET", "/?C=N")[2]
    status, headers, _ = caller.ask("GET", "/sub")
    assert (status, headers["Location"]) == (301, "/sub/")
    for path in ("/no", "/sub/__pycache__/x.pyc", "/sub/__pycache__/", "/empty/", "/empty/x"):
        assert caller.ask("GET", path)[0] == 404, path
    for path in ("/../etc/passwd", "/sub/%2e%2e/%2e%2e/etc/passwd", "/a%00b"):
        assert caller.ask("GET", path)[0] == 400, path
    assert caller.ask("GET", "/empty")[::2] == (200, b"")
    assert caller.ask("DELETE", "/empty")[0] == 405
    assert caller.ask("GET", "/empty")[0] == 200


@pytest.mark.parametrize(
    "said", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, b"\0" * 100_000]
)
def test_nonsense_ends_the_connection_and_nothing_else(url: str, said: bytes) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), DEADLINE_S) as connection:
        try:
            connection.sendall(said)
            assert connection.recv(1000) == b""
        except ConnectionResetError:
            pass  # it did not wait for the rest
    assert Caller(url).ask("GET", "/empty")[0] == 200


def test_every_answer_waits_for_the_delay_and_they_wait_together(root: pathlib.Path) -> None:
    """One after the other they would take more than a minute."""
    process, url = start("--delay", "1s", str(root))
    try:
        begun = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            statuses = list(pool.map(lambda _: Caller(url).ask("GET", "/empty")[0], range(64)))
        assert statuses == [200] * 64
        assert 1 <= time.monotonic() - begun < 64 / 2
    finally:
        stop(process)


def test_the_throttle_is_for_all_connections_together(root: pathlib.Path) -> None:
    (root / "large").write_bytes(bytes(500_000))
    process, url = start("--throttle", "1MB/s", str(root))
    try:
        begun = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            bodies = list(pool.map(lambda _: Caller(url).ask("GET", "/large")[2], range(4)))
        assert bodies == [bytes(500_000)] * 4
        assert time.monotonic() - begun >= 1.7
    finally:
        stop(process)


def test_sizes_and_durations_as_people_write_them() -> None:
    assert [parse_rate(text) for text in ("5MB/s", "512KiB", "0", "1.5GB/s", "100")] == [
        5_000_000,
        524_288,
        0,
        1_500_000_000,
        100,
    ]
    assert [parse_delay_ms(text) for text in ("20ms", "1.5s", "2", "0")] == [20, 1_500, 2_000, 0]
    for parse in (parse_rate, parse_delay_ms):
        with pytest.raises(argparse.ArgumentTypeError, match="write"):
            parse("fast")
    assert Throttle(0).step_bytes > Throttle(10_000).step_bytes >= 1_024


def test_it_starts_only_on_a_directory(root: pathlib.Path) -> None:
    command = [sys.executable, "-m", "stoker.framework.cli.demo_store", str(root / "empty")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 1 and "is not a directory" in run.stderr
