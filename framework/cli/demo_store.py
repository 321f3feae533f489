"""A web server for one directory, slow on purpose: the under store of `stoker demo`, and of tests.

Run as `python -m stoker.framework.cli.demo_store [--port 0] [--delay 20ms] [--throttle 5MB/s] [--exclude NAME] DIR`; prints its URL
on one line and serves until it is ended. Needs the standard library only and nothing of Stoker, so what it shows is not ours.

What it does of HTTP/1.1, as a usual web server does: GET and HEAD, connections kept open, index pages of directories, one
byte range a request, strong ETags, Last-Modified, If-Match, If-None-Match and If-Unmodified-Since. Every answer waits for
the delay first; the throttle is for all connections together.
"""

from __future__ import annotations

import argparse
import contextlib
import email.utils
import html
import http
import os
import re
import socketserver
import stat
import sys
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar
from urllib.parse import quote, unquote

REQUEST_BYTES_MAX = 64 * 1024
IDLE_TIMEOUT_MS = 60_000  # a connection without a request is closed
CHUNK_BYTES = 256 * 1024
THROTTLE_STEP_MS = 20  # a throttled answer leaves in steps of about so long
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kKMG]?)(i?)B?(?:/s)?$")
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|)$")


class Throttle:
    """Lets `bytes_per_s` through, all threads together; 0: as much as comes."""

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    @property
    def step_bytes(self) -> int:
        """How much to send at once, so that no answer waits long for another."""
        if not self.bytes_per_s:
            return CHUNK_BYTES
        return max(1024, min(CHUNK_BYTES, self.bytes_per_s * THROTTLE_STEP_MS // 1000))

    def wait(self, count: int) -> None:
        """Return once `count` more bytes may leave."""
        if not self.bytes_per_s:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self.bytes_per_s
            pause = self._free_at - now
        time.sleep(pause)


class Request:
    """One request's line and headers."""

    def __init__(self, method: str, target: str, headers: Mapping[str, str], keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.headers = headers  # names in lower case
        self.keep_alive = keep_alive


class Answer:
    """A status, headers and a body: `text`, or bytes [start, stop) of the open file `fd`, which whoever sends it closes."""

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str] | None = None,
        *,
        text: bytes = b"",
        fd: int = -1,
        start: int = 0,
        stop: int = 0,
    ) -> None:
        self.status = status
        self.headers = dict(headers or {})
        self.text = text
        self.fd = fd
        self.start = start
        self.stop = stop

    @property
    def body_bytes(self) -> int:
        return self.stop - self.start if self.fd >= 0 else len(self.text)


class DemoStore(socketserver.ThreadingTCPServer):
    """The server. `delay_ms` may be changed while it runs."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def __init__(
        self,
        directory: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        delay_ms: float = 0,
        bytes_per_s: int = 0,
        excluded: Iterable[str] = (),
    ) -> None:
        self.directory = os.path.realpath(directory)
        self.delay_ms = delay_ms
        self.excluded = frozenset(excluded)
        self.throttle = Throttle(bytes_per_s)
        super().__init__((host, port), self.handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Callers that leave in the middle of an answer are no error here."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    class handler(socketserver.StreamRequestHandler):  # noqa: N801
        """One connection."""

        server: DemoStore
        timeout: ClassVar[float] = IDLE_TIMEOUT_MS / 1000
        disable_nagle_algorithm = True
        rbufsize = 16 * 1024

        def handle(self) -> None:
            while (request := read_request(self.rfile)) is not None:
                if self.server.delay_ms:
                    time.sleep(self.server.delay_ms / 1000)
                answer = self.answer(request)
                try:
                    self.send(request, answer)
                finally:
                    if answer.fd >= 0:
                        os.close(answer.fd)
                if not request.keep_alive:
                    return

        def answer(self, request: Request) -> Answer:
            return answer_for(self.server.directory, request, self.server.excluded)

        def send(self, request: Request, answer: Answer) -> None:
            """Send status, headers and body; a small answer leaves in one packet."""
            head = encode_head(answer, request.keep_alive)
            count = 0 if request.method == "HEAD" else answer.body_bytes
            step = self.server.throttle.step_bytes
            position = 0
            while True:
                size = min(step, count - position)
                chunk = (
                    os.pread(answer.fd, size, answer.start + position)
                    if answer.fd >= 0 and size
                    else answer.text[position : position + size]
                )
                if len(chunk) < size:
                    raise ConnectionAbortedError("the file was cut short while it was sent")
                self.server.throttle.wait(size)
                self.connection.sendall(head + chunk)
                head = b""
                position += size
                if position >= count:
                    return


def read_request(stream: object) -> Request | None:
    """Return the next request of a connection, None at its end or if it is no HTTP."""
    readline = stream.readline  # type: ignore[attr-defined]
    try:
        line: bytes = readline(REQUEST_BYTES_MAX)
    except TimeoutError:
        return None
    words = line.decode("latin-1").split()
    if len(words) != 3:
        return None
    headers: dict[str, str] = {}
    left = REQUEST_BYTES_MAX
    while (line := readline(REQUEST_BYTES_MAX)) not in (b"\r\n", b"\n", b""):
        left -= len(line)
        if left < 0:
            return None
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    connection = headers.get("connection", "").lower()
    keep_alive = connection != "close" and (words[2] == "HTTP/1.1" or connection == "keep-alive")
    return Request(words[0], words[1], headers, keep_alive)


def answer_for(directory: str, request: Request, excluded: Collection[str] = ()) -> Answer:
    """Return the answer to `request` for the files in `directory`; files and directories named in `excluded` are not there."""
    if request.method not in ("GET", "HEAD"):
        request.keep_alive = False  # a body may follow, which nobody reads
        return Answer(405, {"Allow": "GET, HEAD"}, text=b"only GET and HEAD\n")
    path = unquote(request.target.partition("?")[0].partition("#")[0], errors="surrogateescape")
    if "\0" in path or ".." in path.split("/"):
        return Answer(400, text=b"no such path\n")
    if any(name in excluded for name in path.split("/")):
        return Answer(404, text=b"not found\n")
    full = directory + "/" + path.strip("/")
    try:
        fd = os.open(full, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        return Answer(403, text=b"forbidden\n")
    except OSError:
        return Answer(404, text=b"not found\n")
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and not path.endswith("/"):
            answer = answer_file(fd, found, request.headers)
        elif stat.S_ISDIR(found.st_mode):
            answer = _answer_directory(full, path, excluded)
        else:
            answer = Answer(404, text=b"not found\n")
    except BaseException:
        os.close(fd)
        raise
    if answer.fd != fd:
        os.close(fd)
    return answer


def answer_file(fd: int, found: os.stat_result, headers: Mapping[str, str]) -> Answer:
    """Return the answer for an open file; conditions first, then the range."""
    etag = f'"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"'
    told = {
        "ETag": etag,
        "Last-Modified": email.utils.formatdate(found.st_mtime, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    if status := _condition_status(etag, int(found.st_mtime), headers):
        return Answer(status, told)
    told["Content-Type"] = "application/octet-stream"
    span = _span(headers.get("range", ""), found.st_size)
    if span is None:
        return Answer(200, told, fd=fd, stop=found.st_size)
    start, stop = span
    if start >= stop:
        return Answer(416, {"Content-Range": f"bytes */{found.st_size}"})
    told["Content-Range"] = f"bytes {start}-{stop - 1}/{found.st_size}"
    return Answer(206, told, fd=fd, start=start, stop=stop)


def _condition_status(etag: str, mtime_s: int, headers: Mapping[str, str]) -> int:
    """Return 412 or 304 where a condition says so, else 0."""
    if "if-match" in headers:
        if not _is_among(etag, headers["if-match"]):
            return 412
    elif "if-unmodified-since" in headers and mtime_s > _seconds(headers["if-unmodified-since"]):
        return 412
    if "if-none-match" in headers and _is_among(etag, headers["if-none-match"]):
        return 304
    return 0


def _is_among(etag: str, wanted: str) -> bool:
    return wanted.strip() == "*" or etag in (one.strip() for one in wanted.split(","))


def _seconds(date: str) -> float:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return float("inf")  # a date that is none is as if it were not there


def _span(wanted: str, size: int) -> tuple[int, int] | None:
    """Return [start, stop) of a range request, empty if it cannot be met; None: the whole file."""
    match = _RANGE.match(wanted)
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) else (0, 0)
    return int(first), min(size, int(last) + 1 if last else size)


def _answer_directory(full: str, path: str, excluded: Collection[str]) -> Answer:
    if not path.endswith("/"):
        return Answer(301, {"Location": quote(path, errors="surrogateescape") + "/"})
    with os.scandir(full) as entries:
        shown = (entry for entry in entries if entry.name not in excluded)
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in shown)
    links = [
        f'<li><a href="{quote(name, errors="surrogateescape")}">{html.escape(name)}</a></li>\n'
        for name in names
    ]
    title = html.escape(path)
    page = f"<!DOCTYPE html>\n<title>{title}</title>\n<h1>{title}</h1>\n<ul>\n{''.join(links)}</ul>\n"
    return Answer(
        200,
        {"Content-Type": "text/html; charset=utf-8"},
        text=page.encode("utf-8", errors="backslashreplace"),
    )


def read_body(answer: Answer) -> bytes:
    """Return the whole body."""
    return os.pread(answer.fd, answer.body_bytes, answer.start) if answer.fd >= 0 else answer.text


def encode_head(answer: Answer, keep_alive: bool) -> bytes:
    """Return the status line and the headers."""
    lines = [f"HTTP/1.1 {answer.status} {http.HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if answer.status != 304:
        lines.append(f"Content-Length: {answer.body_bytes}")
    if not keep_alive:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", errors="replace")


def parse_rate(text: str) -> int:
    """Return bytes/s of `5MB/s`, `1MiB` or `100000`.

    :raises argparse.ArgumentTypeError: it is none.
    """
    match = _SIZE.match(text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate: write 5MB/s or 512KiB/s")
    power = {"": 0, "K": 1, "M": 2, "G": 3}[match[2].upper()]
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def parse_delay_ms(text: str) -> float:
    """Return milliseconds of `20ms`, `1.5s` or `2` (seconds).

    :raises argparse.ArgumentTypeError: it is none.
    """
    match = _DURATION.match(text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 20ms or 1.5s")
    return float(match[1]) * (1 if match[2] == "ms" else 1000)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    arguments = argparse.ArgumentParser(prog="demo_store", description="Serve a directory over HTTP, slowly.")
    arguments.add_argument("directory", metavar="DIR")
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--port", type=int, default=0, help="0: any free one")
    arguments.add_argument("--delay", type=parse_delay_ms, default=0, help="before each answer, such as 20ms")
    arguments.add_argument(
        "--throttle", type=parse_rate, default=0, help="of all answers together, such as 5MB/s"
    )
    arguments.add_argument(
        "--exclude",
        metavar="NAME",
        action="append",
        default=[],
        help="leave out files and directories of this name",
    )
    return arguments


def main(kind: type[DemoStore] = DemoStore) -> int:
    """Serve a directory with a store of `kind` until Ctrl-C; return the exit code."""
    arguments = parser().parse_args()
    if not os.path.isdir(arguments.directory):
        print(f"demo_store: {arguments.directory} is not a directory", file=sys.stderr)
        return 1
    with kind(
        arguments.directory,
        host=arguments.host,
        port=arguments.port,
        delay_ms=arguments.delay,
        bytes_per_s=arguments.throttle,
        excluded=arguments.exclude,
    ) as server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
