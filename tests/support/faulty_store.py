"""The demo store with faults to order; run as a script by stores.py.

A fault is {"path": regex, "kind": ..., "times": n or -1, "skip": n} and applies to GET and HEAD of paths that the regex finds:

- status: answer `status` (with `retry_after` if given)
- cut: send half of the body, then end the connection
- stall: send half of the body, then nothing for `seconds`
- ignore_range: the whole file with 200, whatever range was asked for
- weak_etag, no_etag, no_marks (neither ETag nor Last-Modified), no_length (the body ends with the connection)
- type: the header Content-Type is `type`
- ignore_conditions: If-Match and its like are not looked at
- no_head: HEAD is 405
"""

from __future__ import annotations

import json
import re
import sys
import threading
from typing import Any
from urllib.parse import unquote

from stoker.framework.cli import demo_store
from stoker.framework.cli.demo_store import Answer, DemoStore, Request

REQUESTS_MAX = 100_000
_CONDITIONS = ("if-match", "if-unmodified-since", "if-none-match")


class FaultyStore(DemoStore):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.faults: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        super().__init__(*arguments, **options)

    def take_fault(self, path: str, kind: str) -> dict[str, Any] | None:
        with self.lock:
            for fault in self.faults:
                if (
                    fault["kind"] == kind
                    and fault.get("times", -1)
                    and re.search(fault.get("path", ""), path)
                ):
                    if fault.get("skip", 0):
                        fault["skip"] -= 1
                        continue
                    fault["times"] = fault.get("times", -1) - 1
                    return fault
        return None

    class handler(DemoStore.handler):  # noqa: N801
        server: FaultyStore

        def answer(self, request: Request) -> Answer:
            if request.target.startswith("/.control/"):
                return self._control(request.target.removeprefix("/.control/"))
            path = unquote(request.target)
            answer = self._faulty_answer(path, request)
            with self.server.lock:
                if len(self.server.requests) < REQUESTS_MAX:
                    self.server.requests.append(
                        {
                            "method": request.method,
                            "path": path,
                            "status": answer.status,
                            "range": request.headers.get("range"),
                            "authorization": request.headers.get("authorization"),
                            "if_match": request.headers.get("if-match"),
                        }
                    )
            return answer

        def _control(self, what: str) -> Answer:
            name, _, value = what.partition("?")
            with self.server.lock:
                if name == "forget":
                    self.server.requests.clear()
                    return Answer(200, text=b"{}")
                if name == "faults":
                    self.server.faults = json.loads(unquote(value))
                    return Answer(200, text=b"{}")
                return Answer(200, text=json.dumps(self.server.requests).encode())

        def _faulty_answer(self, path: str, request: Request) -> Answer:
            has = self.server.take_fault
            if fault := has(path, "status"):
                headers = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
                return Answer(fault["status"], headers, text=b"ordered\n")
            if request.method == "HEAD" and has(path, "no_head"):
                return Answer(405)
            headers = dict(request.headers)
            if has(path, "ignore_range"):
                headers.pop("range", None)
            if has(path, "ignore_conditions"):
                headers = {name: value for name, value in headers.items() if name not in _CONDITIONS}
            answer = super().answer(Request(request.method, request.target, headers, request.keep_alive))
            if has(path, "no_etag"):
                answer.headers.pop("ETag", None)
            if has(path, "no_marks"):
                answer.headers.pop("ETag", None)
                answer.headers.pop("Last-Modified", None)
            if fault := has(path, "type"):
                answer.headers["Content-Type"] = fault["type"]
            if "ETag" in answer.headers and has(path, "weak_etag"):
                answer.headers["ETag"] = "W/" + answer.headers["ETag"]
            return answer

        def send(self, request: Request, answer: Answer) -> None:
            path = unquote(request.target)
            if request.method == "GET" and answer.fd >= 0:
                if fault := (self.server.take_fault(path, "cut") or self.server.take_fault(path, "stall")):
                    self._send_half(request, answer)
                    self.server.ended.wait(fault.get("seconds", 0))
                    raise ConnectionAbortedError("ordered")
                if self.server.take_fault(path, "no_length"):
                    self._send_without_length(request, answer)
                    raise ConnectionAbortedError("ordered")
            super().send(request, answer)

        def _send_half(self, request: Request, answer: Answer) -> None:
            head = demo_store.encode_head(answer, request.keep_alive)
            half = Answer(answer.status, text=demo_store.read_body(answer)[: answer.body_bytes // 2])
            self.connection.sendall(head + half.text)

        def _send_without_length(self, request: Request, answer: Answer) -> None:
            head = demo_store.encode_head(answer, keep_alive=False)
            head = re.sub(rb"\r\nContent-Length: \d+", b"", head)
            self.connection.sendall(head + demo_store.read_body(answer))


if __name__ == "__main__":
    sys.exit(demo_store.main(FaultyStore))
