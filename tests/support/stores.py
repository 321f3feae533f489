"""Real under stores for tests, each a process of its own on loopback: a web server with faults to order, and moto's S3."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support.waiting import DEADLINE_S

_FAULTY = Path(__file__).with_name("faulty_store.py")
_MOTO = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
threading.Event().wait()
"""


class HttpStore:
    """A running web server over a directory. `url` ends in "/"."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def order(self, *faults: Mapping[str, Any]) -> None:
        """Replace the faults: see faulty_store.py. None: behave."""
        self._ask("faults?" + urllib.parse.quote(json.dumps(faults)))

    def requests(self) -> list[dict[str, Any]]:
        """Return all requests so far: method, path, status, and range and if_match as sent."""
        requests: list[dict[str, Any]] = self._ask("requests")
        return requests

    def forget_requests(self) -> None:
        """Begin counting requests anew."""
        self._ask("forget")

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def _ask(self, what: str) -> Any:
        with urllib.request.urlopen(f"{self.url}.control/{what}", timeout=DEADLINE_S) as answer:
            return json.load(answer)


@contextlib.contextmanager
def http_store(
    directory: str | os.PathLike[str], *, delay: str = "0ms", throttle: str = "0", port: int = 0
) -> Iterator[HttpStore]:
    """Serve `directory`; each answer waits for `delay`, all together leave at `throttle` at most."""
    command = [sys.executable, str(_FAULTY), "--delay", delay, "--throttle", throttle, "--port", str(port)]
    command.append(os.fspath(directory))
    with _process(command) as (process, url):
        yield HttpStore(process, url)


class S3Store:
    """A running S3 server. `options` are what a dataset needs to read from it."""

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.endpoint = endpoint
        self.options = {"endpoint_url": endpoint, "key": "testing", "secret": "testing-secret"}
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing-secret",
        )

    def fill(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Make the bucket with these objects."""
        self.client.create_bucket(Bucket=bucket)
        for key, data in objects.items():
            self.client.put_object(Bucket=bucket, Key=key, Body=data)


@contextlib.contextmanager
def s3_store() -> Iterator[S3Store]:
    """Run moto's S3 server."""
    with _process([sys.executable, "-c", _MOTO]) as (_, url):
        yield S3Store(url)


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `command`, whose first line is its URL; end it at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), f"{command} did not start (exit code {process.poll()})"
        yield process, url
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
