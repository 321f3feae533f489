"""The scheduler's side of Mesos' v1 API: pymesos' driver with its public interface, on a transport of our own.

Theory of operation. `start` begins a thread that owns the event stream and makes all callbacks, one at a time, in the
master's order. It goes round like this::

        +--> no master known --(change_master)--> SUBSCRIBE --200--> SUBSCRIBED --> events --+
        |         ^                                   |                                      |
        |         |             307 (other address, at once, REDIRECTS_MAX in a row)         |
        |         |             503, 401, no connection, ...                          end, silence,
        |         |                                   |                               broken framing
        +---------+------ back-off with jitter <------+--------------------------------------+

and it leaves the round only by `stop`, by an ERROR event, or by a SUBSCRIBE that the master calls malformed. Then the
driver is aborted; for the last two, and for a mistake of our own, `error` is called, once. What a user may rely on:

- nothing but `teardown` ever sends TEARDOWN: not `stop`, not `abort`, not an exception, not a signal;
- an exception in a callback is logged and counted, and the next event is delivered; an update whose callback raised is
  not acknowledged for it;
- `disconnected` is called once for each `registered` or `reregistered` that was not ended by `stop` or `error`;
- a call without a subscribed stream raises `Disconnected`, a refused one `HttpError`, one whose fate is unknown
  `CallFailed`; no call is dropped silently. Calls may be made from any thread or greenlet, also from callbacks;
- callbacks get what the master sent as plain dictionaries and lists (pymesos' default; there is no addict here), bytes
  as base64 strings; `masterInfo` is the master's own MasterInfo, with its `id` and `domain`.

`registered` means that the master gave a new framework id; with an id from before it is always `reregistered`, also
with another master (compare `masterInfo["id"]`). Works with threads and in a process that gevent has monkey-patched.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from stoker.mesos.detector import Address, Detector, address_in_location, detector_for, parse_address
from stoker.mesos.errors import HttpError, StreamBroken
from stoker.mesos.recordio import RECORD_BYTES_MAX, decode_event
from stoker.mesos.scheduler_calls import JsonObject, SchedulerCalls, no_stream
from stoker.mesos.transport import (
    CALL_TIMEOUT_MS,
    CONNECT_TIMEOUT_MS,
    Answer,
    Backoff,
    Caller,
    EventStream,
    encode_call,
)
from stoker.mesos.versions import reason_too_old

__all__ = ["SchedulerDriver", "Timings"]

logger = logging.getLogger(__name__)

PATH = "/api/v1/scheduler"
REDIRECTS_MAX = 5
HEARTBEAT_INTERVAL_MS_DEFAULT = 15_000
HEARTBEAT_INTERVAL_MS_MAX = 3_600_000  # whatever a master says: silence beyond it is a dead one's
SHORTEST_S = 1e-9

# Answers to SUBSCRIBE that will be the same tomorrow: what we send is wrong.
_MALFORMED = (400, 405, 406, 415)
# Calls that change what they find: received twice, the second does harm.
_NOT_REPEATABLE = ("ACCEPT", "MESSAGE")

_HANDLERS = {
    "SUBSCRIBED": "on_subscribed",
    "OFFERS": "on_offers",
    "INVERSE_OFFERS": "on_inverse_offers",
    "RESCIND": "on_rescind",
    "RESCIND_INVERSE_OFFER": "on_rescind_inverse_offer",
    "UPDATE": "on_update",
    "UPDATE_OPERATION_STATUS": "on_update_operation_status",
    "MESSAGE": "on_message",
    "FAILURE": "on_failure",
    "ERROR": "on_error",
}


@dataclass(frozen=True, slots=True)
class Timings:
    """How long the driver waits for what; the defaults fit a real master."""

    connect_timeout_ms: int = CONNECT_TIMEOUT_MS
    call_timeout_ms: int = CALL_TIMEOUT_MS
    retry_first_ms: int = 500
    retry_ms_max: int = 15_000
    # A stream that lived so long was a good one: the next back-off begins at the shortest delay.
    stable_ms: int = 20_000
    # The master is taken for dead after so many heartbeat intervals without a byte.
    heartbeats_missed_max: int = 3


class _Subscription(NamedTuple):
    """A stream that the master has confirmed: where it leads and what its calls must carry."""

    address: Address
    stream_id: str


class _End(NamedTuple):
    """How one attempt to follow the master ended."""

    reason: str
    redirect: Address | None = None
    fatal: bool = False


class SchedulerDriver(SchedulerCalls):
    """Drive one framework. `sched` has the methods of pymesos' Scheduler; see the module for what it may rely on.

    `framework` is a FrameworkInfo as JSON, sent unchanged but for a missing failover_timeout (a week) and principal;
    put the `id` that was journaled into it. `implicit_acknowledgements` acknowledges an update when its callback has
    returned; leave it off where updates must be durable first. `suppressed_roles` and `offer_constraints` are what
    the first SUBSCRIBE says; later ones say what `suppressOffers`, `reviveOffers` and `updateFramework` left.
    `may_send` is asked right before each SUBSCRIBE and each call, from any thread: where it says no, nothing is sent.
    With `tls` masters are spoken to over TLS, and checked as it says. `on_trouble` is told why there is no stream now,
    once for each try, in the driver's thread.

    :raises ValueError: `master_uri` is neither HOST:PORT nor zk://..., or there is a secret without a principal.
    """

    # Set by pymesos' constructors.
    detector: Detector | None
    _started: bool
    _master: str | None
    _new_master: str | None
    _io_thread: threading.Thread | None
    stream_id: str | None

    def __init__(
        self,
        sched: Any,
        framework: Mapping[str, Any],
        master_uri: str,
        *,
        implicit_acknowledgements: bool = False,
        principal: str | None = None,
        secret: str | None = None,
        suppressed_roles: Iterable[str] = (),
        offer_constraints: Mapping[str, Any] | None = None,
        timings: Timings | None = None,
        tls: ssl.SSLContext | None = None,
        may_send: Callable[[], bool] = lambda: True,
        on_trouble: Callable[[str], None] = lambda reason: None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        if secret is not None and principal is None:
            raise ValueError("a secret without a principal: give both or none")
        detector = detector_for(master_uri, by_name=tls is not None)
        super().__init__(
            sched,
            framework,
            master_uri,
            implicit_acknowledgements=implicit_acknowledgements,
            suppressed_roles=suppressed_roles,
            offer_constraints=offer_constraints,
        )
        self._detector_of_start = detector
        if principal is not None:
            self._framework.setdefault("principal", principal)
        self._authorization = None if secret is None else _basic_authorization(f"{principal}:{secret}")
        self._timings = timings or Timings()
        self._tls = tls
        self._may_send = may_send
        self._on_trouble = on_trouble
        self._uniform = uniform
        self._caller = Caller(timeout_ms=self._timings.call_timeout_ms, tls=tls)
        self._wake = threading.Event()
        self._stream: EventStream | None = None
        self._subscription: _Subscription | None = None
        self._opened: _Subscription | None = None
        self._fatal: str | None = None
        self._heartbeat_interval_ms = HEARTBEAT_INTERVAL_MS_DEFAULT
        self._is_not_tearing_down = threading.Event()
        self._is_not_tearing_down.set()
        self.callback_failure_count = 0

    # --- what the user asks about

    @property
    def connected(self) -> bool:
        """Say whether the master has confirmed our stream, so that calls can be made."""
        return self._subscription is not None

    # --- beginning and end

    def start(self) -> None:
        """Begin to follow the master; returns at once. Does nothing if it runs already. Not for callbacks."""
        with self._lock:
            if self._started:
                logger.warning("the scheduler driver runs already")
                return
        assert self._io_thread is not threading.current_thread(), "start from a callback"
        self.join()
        with self._lock:
            self._started = True
            self._fatal = None
            self._io_thread = threading.Thread(target=self._run, name="mesos scheduler driver", daemon=True)
            thread = self._io_thread
            self.detector = self._detector_of_start
        thread.start()
        self._detector_of_start.start(self.change_master)

    def stop(self, failover: bool = True) -> None:
        """Close the stream and end the thread soon; the framework and its tasks stay. Any thread, any time.

        `failover` is pymesos' and changes nothing: what ends a framework is called `teardown`. A callback that runs
        now runs to its end, and no other one begins.
        """
        with self._lock:
            self._started = False
            stream, detector = self._stream, self.detector
            self.detector = None
            self._subscription = None
            self.stream_id = None
        if detector is not None:
            detector.stop()
        self._wake.set()
        self._is_not_tearing_down.set()
        if stream is not None:
            stream.close()
        self._caller.close_idle()

    def abort(self) -> None:
        """Do as `stop` does: pymesos' interface has both."""
        self.stop()

    def join(self) -> None:
        """Wait until the thread has ended; from the thread itself (a callback) it returns at once."""
        thread = self._io_thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def teardown(self) -> None:
        """End the framework for ever: all its tasks are killed, its id is dead. Then stop.

        :raises Disconnected, HttpError, CallFailed: as for all calls; the driver then goes on.
        """
        self._is_not_tearing_down.clear()
        try:
            self._call("TEARDOWN")
            self.stop()
        finally:
            self._is_not_tearing_down.set()

    def change_master(self, new_master: str | None) -> None:
        """Follow another master from now on, or wait for one: what a detector calls. Any thread.

        :raises ValueError: it is no HOST:PORT.
        """
        address = None if new_master is None else parse_address(new_master)
        with self._lock:
            if self._subscription is not None and self._subscription.address == address:
                self._new_master = self._master = new_master  # where a 307 has led us already
                return
            is_same = new_master == self._new_master and new_master == self._master
            self._new_master = new_master
            stream = None if is_same else self._stream
        if not is_same:
            self._wake.set()
            if stream is not None:
                stream.close()

    # --- how calls are sent

    def _send(
        self, body: Any, path: str = PATH, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> JsonObject:
        with self._lock:
            subscription = self._subscription
        if subscription is None or not self._may_send():
            raise no_stream()
        self._call_marks.has_sent = True
        kind = str(body["type"])
        answer = self._caller.call(
            subscription.address,
            path,
            encode_call(body),
            {**self._headers(), "Mesos-Stream-Id": subscription.stream_id, **(headers or {})},
            method=method,
            may_repeat=kind not in _NOT_REPEATABLE,
        )
        if 200 <= answer.status < 300:
            return {}
        if answer.status == 307 or (answer.status == 403 and "not subscribed" in answer.text):
            self._drop(subscription, f"{kind} was answered with HTTP {answer.status}")
        raise HttpError(answer.status, answer.text, about=f"{kind} to {subscription.address}")

    def _drop(self, subscription: _Subscription, reason: str) -> None:
        """Give up a stream whose master says that it leads us no more."""
        with self._lock:
            stream = self._stream if self._subscription is subscription else None
        if stream is not None:
            logger.warning("leaving the stream of %s: %s", subscription.address, reason)
            stream.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        return headers

    # --- following the master: the driver's thread

    def _run(self) -> None:
        try:
            self._follow_masters()
        except Exception as error:  # the thread's top frame: without it nobody would hear that it has ended
            logger.exception("the scheduler driver's thread failed")
            self._abort(f"our mistake while following the Mesos master: {error!r}")

    def _follow_masters(self) -> None:
        timings = self._timings
        backoff = Backoff(first_ms=timings.retry_first_ms, max_ms=timings.retry_ms_max, uniform=self._uniform)
        redirect: Address | None = None
        redirect_count = 0
        while self._started:
            self._wake.clear()
            address = self._known_master() if redirect is None or self._has_other_master() else redirect
            if not self._started:
                return
            if address is None:
                self._on_trouble(self._detector_of_start.reason or "no leading master is known yet")
                self._wake.wait()
                continue
            began_ms = _now_ms()
            end = self._follow(address)
            if end.fatal:
                self._abort(end.reason)
                return
            if not self._started:
                return
            redirect = end.redirect if redirect_count < REDIRECTS_MAX else None
            if redirect is not None:
                redirect_count += 1
                logger.info("%s is not the leading master, asking %s", address, redirect)
                continue
            redirect_count = 0
            if _now_ms() - began_ms >= timings.stable_ms:
                backoff.reset()
            delay_ms = backoff.next_ms()
            logger.warning("no stream from master %s: %s; again in %d ms", address, end.reason, delay_ms)
            self._on_trouble(end.reason)
            self._wake.wait(delay_ms / 1000)

    def _has_other_master(self) -> bool:
        """Return whether another master was told since the last look at which one it is."""
        return self._new_master != self._master

    def _known_master(self) -> Address | None:
        with self._lock:
            self._master = self._new_master
            return None if self._master is None else parse_address(self._master)

    def _follow(self, address: Address) -> _End:
        """Subscribe at `address` and deliver its events until the stream ends, however that happens."""
        stream = EventStream(address, self._tls)
        with self._lock:
            if not self._started:
                return _End("stopped")
            if self._has_other_master():  # told when there was no stream yet to close
                return _End("another master leads now")
            self._stream = stream
        try:
            answer = self._subscribe(stream)
            if answer.status != 200:
                scheme = "https" if self._tls else "http"
                return _refusal(address, answer, scheme, has_secret=self._authorization is not None)
            self._opened = _Subscription(address, answer.headers.get("mesos-stream-id", ""))
            if not self._opened.stream_id:
                raise StreamBroken(
                    f"{address}: its answer to SUBSCRIBE has no Mesos-Stream-Id: is it a Mesos master?"
                )
            self._deliver_all(stream)
        except StreamBroken as error:
            end = _End(str(error))
        else:
            end = _End("the master ended the stream")
        finally:
            was_subscribed = self._forget_stream()
            stream.release()
        if self._fatal is not None:
            return _End(self._fatal, fatal=True)
        # A master ends the stream before it answers a TEARDOWN: only the answer says whether to go on.
        self._is_not_tearing_down.wait()
        if was_subscribed and self._started:
            self._guard("disconnected", self.sched.disconnected, self)
        return end

    def _subscribe(self, stream: EventStream) -> Answer:
        if not self._may_send():
            raise StreamBroken("this scheduler may not speak for the framework now")
        framework = self.framework
        with self._lock:
            subscribe: JsonObject = {
                "framework_info": framework,
                "suppressed_roles": sorted(self._suppressed_roles),
            }
            if self._offer_constraints is not None:
                subscribe["offer_constraints"] = self._offer_constraints
        call: JsonObject = {"type": "SUBSCRIBE", "subscribe": subscribe}
        if "id" in framework:
            call["framework_id"] = framework["id"]
        return stream.open(
            PATH,
            encode_call(call),
            self._headers(),
            connect_timeout_ms=self._timings.connect_timeout_ms,
            timeout_ms=self._timings.call_timeout_ms,
        )

    def _forget_stream(self) -> bool:
        with self._lock:
            was_subscribed = self._subscription is not None
            self._stream = None
            self._subscription = None
            self._opened = None
            self.stream_id = None
        self._caller.close_idle()
        return was_subscribed

    def _deliver_all(self, stream: EventStream) -> None:
        for records in stream.records(record_bytes_max=RECORD_BYTES_MAX):
            for record in records:
                event = decode_event(record, rest=_rest)
                if stream.is_closed:
                    raise StreamBroken("left for another master, or because this one leads us no more")
                if self._subscription is None and event.get("type") not in ("SUBSCRIBED", "ERROR"):
                    raise StreamBroken(f"{event.get('type')!r} came before SUBSCRIBED")
                self.process_event(event)
                if self._fatal is not None or not self._started:
                    return
            interval_ms = self._heartbeat_interval_ms
            stream.allow_silence(interval_ms * self._timings.heartbeats_missed_max)

    def _abort(self, message: str) -> None:
        """End for good, then say why: pymesos' order."""
        self.stop()
        logger.error("the scheduler driver is aborted: %s", message)
        self._guard("error", self.sched.error, self, message)

    # --- events; pymesos' handlers where they are right

    def on_event(self, event: JsonObject) -> None:
        """Deliver one event; whatever a callback raises stays here."""
        kind = event.get("type")
        if kind == "HEARTBEAT":
            self._guard("HEARTBEAT", self.on_heartbeat)
            return
        name = _HANDLERS.get(kind) if isinstance(kind, str) else None
        if name is None:
            logger.warning("an event of unknown type %r was passed over", kind)
            return
        assert isinstance(kind, str)
        body = event.get(kind.lower())
        if not isinstance(body, dict):
            raise StreamBroken(f"an event of type {kind} has no {kind.lower()!r}")
        self._guard(kind, getattr(self, name), body)

    def on_subscribed(self, info: JsonObject) -> None:
        framework_id = info["framework_id"]["value"]
        known = self.framework_id
        if known is not None and known != framework_id:
            self._fatal = f"asked as framework {known}, the master answered to {framework_id}"
            return
        if too_old := reason_too_old(str(info.get("master_info", {}).get("version", ""))):
            self._fatal = too_old
            return
        opened = self._opened
        assert opened is not None, "SUBSCRIBED without a stream"
        interval_s = info.get("heartbeat_interval_seconds")
        self._heartbeat_interval_ms = (
            max(1, round(min(interval_s * 1000, HEARTBEAT_INTERVAL_MS_MAX)))
            if interval_s
            else HEARTBEAT_INTERVAL_MS_DEFAULT
        )
        with self._lock:
            if not self._started:
                return
            self.framework_id = framework_id
            self._subscription = opened
            self.stream_id = opened.stream_id
        master = {"hostname": opened.address.host, "port": opened.address.port, **info.get("master_info", {})}
        logger.info("subscribed at master %s as framework %s", opened.address, framework_id)
        if known is None:
            self.sched.registered(self, {"value": framework_id}, master)
        else:
            self.sched.reregistered(self, master)

    def on_offers(self, event: JsonObject) -> None:
        offers = event.get("offers", [])
        if offers:
            self.sched.resourceOffers(self, offers)

    def on_failure(self, failure: JsonObject) -> None:
        agent_id = failure.get("agent_id")
        if "executor_id" in failure:
            # The status is optional on the wire: None = the master did not say.
            self.sched.executorLost(self, failure["executor_id"], agent_id, failure.get("status"))
        elif agent_id is not None:
            self.sched.slaveLost(self, agent_id)

    def on_error(self, event: JsonObject) -> None:
        # The master closes the stream after it and means it: the same SUBSCRIBE would get the same again, or would
        # throw out the scheduler that took our place.
        self._fatal = str(event.get("message") or "the master gave no reason")

    def _guard(self, what: str, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except StreamBroken:
            raise
        except Exception:  # the user's code: it must not take the framework's connection with it
            self.callback_failure_count += 1
            logger.exception("the callback for %s raised; the driver goes on", what)

    # --- pymesos' own transport, which is not used

    def _notify(self) -> None:
        self._wake.set()

    def _shutdown(self) -> None:
        raise AssertionError("pymesos' _shutdown tears frameworks down")

    def _get_version(self, master: str | None) -> None:
        return None


def _refusal(address: Address, answer: Answer, scheme: str, *, has_secret: bool) -> _End:
    reason = str(HttpError(answer.status, answer.text, about=f"SUBSCRIBE at {address}"))
    if answer.status in (307, 308):
        try:
            location = answer.headers.get("location", "")
            return _End(reason, redirect=address_in_location(location, address, scheme=scheme))
        except ValueError as error:
            return _End(str(error))
    if answer.status == 401:
        if has_secret:
            return _End(f"{reason} (the master does not take our principal and secret)")
        return _End(f"{reason} (the master asks for a principal and a secret, and none was given)")
    return _End(reason, fatal=answer.status in _MALFORMED)


def _basic_authorization(credential: str) -> str:
    return "Basic " + b64encode(credential.encode("utf-8")).decode("ascii")


def _rest() -> None:
    # Other threads; or (patched) other greenlets, and whoever waits for a socket: a sleep of 0 is no turn for those.
    time.sleep(SHORTEST_S)


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
