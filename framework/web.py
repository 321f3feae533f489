"""HTTP: falcon parses and routes, gevent's pywsgi serves. Nothing here knows what a request means.

Everything that a caller may do to a server is bounded: the number of connections, the time to send a request's head
and body, idle connections, the size of a body. Every error leaves as `{"error": {"code", "message", "hint"}}`.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import falcon
import gevent
from gevent.pool import Pool
from gevent.pywsgi import Input, WSGIHandler, WSGIServer

from stoker.executor.messages import HEARTBEAT_BYTES_MAX
from stoker.framework.api import Api, Call, Reply
from stoker.framework.checks import BODY_BYTES_MAX, check_schema, parse_json, refuse
from stoker.framework.errors import (
    FrameworkError,
    LedElsewhere,
    NotLeading,
    OutcomeUnknown,
    Overloaded,
    Refused,
)
from stoker.framework.metrics import Metrics
from stoker.framework.model import Refusal
from stoker.framework.routes import ROUTES, Route
from stoker.zk.errors import JournalError

CONNECTIONS_MAX = 2_000
BACKLOG = 512
PROBED = ("/alive", "/health")  # load balancers may ask for the status alone
HEAD_TIMEOUT_MS = 10_000  # from a request's first line to its last header
IDLE_TIMEOUT_MS = 75_000  # of a connection between requests
BODY_TIMEOUT_MS = 30_000
SEND_TIMEOUT_MS = 60_000  # of one piece of an answer
DISCARD_BYTES_MAX = 16 * 1024 * 1024  # of a refused body, read so that its sender gets to read the refusal
DISCARD_TIMEOUT_MS = 2_000
DISCARD_PIECE_BYTES = 64 * 1024

TARGET = "stoker.target"  # in the WSGI environment: the request's path and query as they came
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_NOT_HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

log = logging.getLogger(__name__)


class _TooSlow(OSError):
    """The other side did not send in time."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "too slow")


def make_app(api: Api, metrics: Metrics, *, check_leads: Callable[[], None] | None = None) -> Any:
    """Return the WSGI application that serves ROUTES with `api`.

    `check_leads` is called before a request is parsed that only a leader answers; it raises what `api` would later.
    """
    app = falcon.App(media_type="application/json")
    app.req_options.strip_url_path_trailing_slash = False
    app.req_options.keep_blank_qs_values = True
    app.set_error_serializer(_serialize_http_error)
    for kind, handle in _ERRORS:
        app.add_error_handler(kind, handle)
    by_path: dict[str, Any] = {}
    for route in ROUTES:
        resource = by_path.setdefault(route.path, _Resource())
        check = check_leads if route.is_leaders else None
        responder = functools.partial(_respond, route, getattr(api, route.handler), check, metrics)
        methods = [route.method]
        if route.path in PROBED:
            methods.append("HEAD")  # falcon sends no body then
        for method in methods:
            setattr(resource, f"on_{method.lower()}", responder)
    for path, resource in by_path.items():
        app.add_route(path, resource)
    return app


class _Resource:
    """What falcon wants: an object with on_get, on_post ... for one path."""


def _respond(
    route: Route,
    handler: Callable[[Call], Reply],
    check: Callable[[], None] | None,
    metrics: Metrics,
    request: falcon.Request,
    response: falcon.Response,
    **parameters: str,
) -> None:
    began = time.monotonic()
    status = "500"
    try:
        if check is not None:
            check()  # before a body is read that only the leader needs
        reply = handler(_call(route, request, parameters))
        _fill(route, response, reply)
        status = str(reply.status)
    except Refused as error:
        status = str(error.refusal.status)
        raise
    except (FrameworkError, JournalError) as error:
        status = "307" if isinstance(error, LedElsewhere) else "503"
        raise
    finally:
        metrics.requests.labels(f"{route.method} {route.path}", status).inc()
        metrics.request_seconds.labels(f"{route.method} {route.path}").observe(time.monotonic() - began)


def _call(route: Route, request: falcon.Request, parameters: dict[str, str]) -> Call:
    """:raises Refused: the request is not what the route takes."""
    queries = _queries(route, request)
    headers = {h.name: value for h in route.headers if (value := request.get_header(h.name)) is not None}
    body, data = None, b""
    if route.body_media_type != "application/json":
        data = _read_body(request, HEARTBEAT_BYTES_MAX)
    elif route.body is not None:
        body = parse_json(_read_body(request, BODY_BYTES_MAX))
        check_schema(body, route.body, "the body")
    return Call(parameters, queries, headers, body, data)


def _queries(route: Route, request: falcon.Request) -> dict[str, Any]:
    known = {query.name: query for query in route.queries}
    values: dict[str, Any] = {}
    for name, raw in request.params.items():
        if name not in known:
            allowed = f"known are {', '.join(known)}" if known else "this route takes none"
            refuse(f"there is no query parameter {name[:80]!a}", allowed, code="unknown_field")
        if not isinstance(raw, str):
            refuse(f"the query parameter {name!r} is given twice")
        value: Any = raw
        if known[name].schema["type"] == "integer":
            if not (raw.isascii() and raw.isdigit() and len(raw) <= 18):
                refuse(f"the query parameter {name!r} is {raw[:80]!a}", "a whole number")
            value = int(raw)
        check_schema(value, known[name].schema, f"the query parameter {name!r}")
        values[name] = value
    return values


def _read_body(request: falcon.Request, bytes_max: int) -> bytes:
    """:raises Refused: it is too large, or does not come in time."""
    length = request.content_length
    if length is not None and length > bytes_max:
        refuse(f"the body has {length} bytes", f"at most {bytes_max}", status=413, code="too_large")
    try:
        with gevent.Timeout(BODY_TIMEOUT_MS / 1000, _TooSlow):
            data = bytes(request.env["wsgi.input"].read(bytes_max + 1))
    except (OSError, ValueError) as error:
        refuse(f"the body did not arrive: {error or 'too slow'}", status=408)
    if len(data) > bytes_max:
        refuse(
            f"the body has more than {bytes_max} bytes", f"at most {bytes_max}", status=413, code="too_large"
        )
    return data


def _fill(route: Route, response: falcon.Response, reply: Reply) -> None:
    response.status = reply.status
    response.content_type = route.media_type
    response.set_header("Cache-Control", "no-store")
    if isinstance(reply.body, bytes):
        response.data = reply.body
    elif isinstance(reply.body, Iterator):
        response.stream = reply.body
        response.content_length = reply.size
    else:
        response.data = json.dumps(reply.body).encode()


# --- errors


def _serialize_http_error(
    request: falcon.Request, response: falcon.Response, error: falcon.HTTPError
) -> None:
    status = falcon.http_status_to_code(error.status)
    code, message = {
        404: ("not_found", f"there is nothing at {request.path[:200]!a}"),
        405: ("method_not_allowed", f"{request.method[:20]!a} is not for {request.path[:200]!a}"),
    }.get(status, ("bad_request", str(error.description or error.title or "bad request")))
    _error(response, Refusal(status, code, message, "GET /v1/openapi.json describes all routes"))


def _refused(_: falcon.Request, response: falcon.Response, error: Any, __: Any) -> None:
    _error(response, error.refusal)


def _led_elsewhere(request: falcon.Request, response: falcon.Response, error: Any, __: Any) -> None:
    if request.path == "/health":  # it is asked for finding the leader: a 307 would make all look alike
        _not_leading(request, response, error, __)
        return
    target = request.env.get(TARGET) or request.relative_uri
    hint = "ask the leader, the same way"
    _error(response, Refusal(307, "not_leading", str(error), hint))
    response.set_header("Location", error.leader + target)


def _not_leading(_: falcon.Request, response: falcon.Response, error: Any, __: Any) -> None:
    hint = "surely not done: ask again in a moment, or another scheduler (GET /v1/leader says what this one knows)"
    _error(response, Refusal(503, "not_leading", str(error), hint), retry_after=True)


def _overloaded(_: falcon.Request, response: falcon.Response, error: Any, __: Any) -> None:
    _error(
        response,
        Refusal(503, "overloaded", str(error), "surely not done: ask again in a while"),
        retry_after=True,
    )


def _outcome_unknown(_: falcon.Request, response: falcon.Response, error: Any, __: Any) -> None:
    hint = "it may have been done: ask again, with the same Idempotency-Key or name"
    _error(response, Refusal(503, "outcome_unknown", str(error), hint), retry_after=True)


def _journal_failed(request: falcon.Request, response: falcon.Response, error: Any, __: Any) -> None:
    log.warning("%s %s: %s", request.method, request.path, error)
    _error(response, Refusal(503, "not_leading", f"the journal: {error}", "ask again"), retry_after=True)


def _unexpected(request: falcon.Request, response: falcon.Response, error: Any, __: Any) -> None:
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    _error(
        response,
        Refusal(500, "internal", f"our mistake: {type(error).__name__}", "the scheduler's log has the rest"),
    )


_ERRORS: tuple[tuple[type[Exception], Any], ...] = (
    (Exception, _unexpected),
    (falcon.HTTPError, lambda req, resp, error, _: _http_error(req, resp, error)),
    (Refused, _refused),
    (NotLeading, _not_leading),
    (LedElsewhere, _led_elsewhere),
    (Overloaded, _overloaded),
    (OutcomeUnknown, _outcome_unknown),
    (JournalError, _journal_failed),
)


def _http_error(request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
    response.status = error.status
    if error.headers is not None:
        response.set_headers(error.headers)
    _serialize_http_error(request, response, error)


def _error(response: falcon.Response, refusal: Refusal, *, retry_after: bool = False) -> None:
    response.status = refusal.status
    response.content_type = "application/json"
    if retry_after:
        response.set_header("Retry-After", "1")
    fields = {"code": refusal.code, "message": refusal.message, "hint": refusal.hint}
    response.data = json.dumps({"error": fields}).encode()


# --- the server


class _Input(Input):  # type: ignore[misc]
    """A request's body. What its handler left unread is read away within bounds, or else the connection ends."""

    __slots__ = ("handler",)

    def _discard(self) -> None:
        left = DISCARD_BYTES_MAX
        try:
            with gevent.Timeout(DISCARD_TIMEOUT_MS / 1000, _TooSlow):
                while left > 0 and (data := self.read(DISCARD_PIECE_BYTES)):
                    left -= len(data)
        except (OSError, ValueError):
            left = 0
        if left <= 0:
            self.handler.close_connection = True


class _Handler(WSGIHandler):  # type: ignore[misc]
    """pywsgi's handler with limits on how long a caller may take, and without a line a request."""

    def __init__(self, sock: Any, address: Any, server: Any) -> None:
        sock.settimeout(SEND_TIMEOUT_MS / 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each answer waits 40 ms for an ACK
        super().__init__(sock, address, server)

    def read_requestline(self) -> Any:
        with gevent.Timeout(IDLE_TIMEOUT_MS / 1000, _TooSlow):
            return super().read_requestline()

    def read_request(self, raw_requestline: Any) -> Any:
        with gevent.Timeout(HEAD_TIMEOUT_MS / 1000, _TooSlow):
            return super().read_request(raw_requestline)

    def get_environ(self) -> Any:
        environ = super().get_environ()
        made: Any = self.wsgi_input  # type: ignore[has-type]
        body = _Input(made.rfile, made.content_length, socket=made.socket, chunked_input=made.chunked_input)
        body.handler = self
        environ[TARGET] = self.path  # as it came: nothing percent-decoded
        environ["wsgi.input"] = self.wsgi_input = body
        return environ

    def log_request(self) -> None:
        """Metrics count requests; lines would be the heartbeats of a thousand executors."""

    def handle_error(self, kind: Any, error: Any, traceback: Any) -> None:
        """An answer was cut off: its reader went away or is too slow, or what was streamed went away."""
        is_ours = not isinstance(error, OSError | FrameworkError | JournalError)
        level = logging.ERROR if is_ours else logging.DEBUG
        trace = (kind, error, traceback) if is_ours else None
        log.log(level, "answer to %s %s cut off: %s", self.command, self.path, error, exc_info=trace)
        self._send_error_response_if_possible(500)
        self.close_connection = True

    def _handle_client_error(self, error: Exception) -> tuple[str, bytes]:
        log.debug("bad request from %s: %s", self.client_address, error)
        return ("408", _TOO_SLOW) if isinstance(error, OSError) else ("400", _NOT_HTTP)


def make_server(host: str, port: int, app: Any) -> Any:
    """Return the server, bound but not accepting yet; `server_port` is the port.

    :raises OSError: the address cannot be had.
    """
    errors = logging.getLogger(f"{__name__}.pywsgi")
    server = WSGIServer(
        (host, port),
        app,
        backlog=BACKLOG,
        spawn=Pool(CONNECTIONS_MAX),
        log=None,
        error_log=errors,
        handler_class=_Handler,
    )
    server.init_socket()
    return server
