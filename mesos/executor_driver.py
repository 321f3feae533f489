"""The executor's side of Mesos' v1 API, with pymesos' Executor interface; the code is our own (pymesos' loses updates).

Theory of operation. One thread owns the event stream from the agent and makes the callbacks, one at a time; one sends
status updates, in the order in which they were given. What must outlive an agent's restart is kept here:

- each status update from `sendStatusUpdate` until the agent's ACKNOWLEDGED (it then has it on disk),
- each TaskInfo from its LAUNCH until the first update of that task is acknowledged,

and both are said again in every SUBSCRIBE, so that the agent forgets no task and no end of one. When the stream ends
and the framework checkpoints, we are back every 200 to 500 ms: an agent that restarted waits 2 s for its executors and
kills those that come later. Nobody came back within the recovery timeout, or there is no checkpointing: `shutdown` is
called as if the agent had asked for it.

`shutdown` has the agent's grace period: it runs in a thread of its own so that acknowledgements still come in while it
runs, no other callback begins after it, then updates are flushed and the driver stops. If it takes longer, this
process ends, hard. Only ever this process: a process group is never signalled. After `error` the driver has stopped
and the process should end. Works with threads and under gevent's monkey-patching; imports neither gevent nor pymesos.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from stoker.mesos.errors import BadCall, CallFailed, Disconnected, HttpError, QueueFull, StreamBroken
from stoker.mesos.executor_settings import RETRY_MS_MAX, ExecutorSettings, read_settings
from stoker.mesos.recordio import RECORD_BYTES_MAX, decode_event
from stoker.mesos.transport import Caller, EventStream, encode_call

__all__ = ["Executor", "ExecutorDriver", "ExecutorSettings", "read_settings"]

JsonObject = dict[str, Any]

logger = logging.getLogger(__name__)

PATH = "/api/v1/executor"
UPDATES_MAX = 1_000  # kept at a time; each is some hundred bytes of a SUBSCRIBE
UPDATE_BYTES_MAX = 64 * 1024
RETRY_MS_MIN = 200
CONNECT_TIMEOUT_MS = 2_000
# An agent gives an executor a minute to subscribe for the first time.
REGISTRATION_MS_MAX = 60_000
# Agents send a heartbeat every 30 minutes; the kernel's keep-alive notices a dead host long before.
SILENCE_MS_MAX = 90 * 60_000
# Answers to SUBSCRIBE that mean that the agent does not know us and never will again.
_FATAL = (400, 401, 403, 405, 406, 415)


class Executor(Protocol):
    """The callbacks; pymesos.Executor and its subclasses fit. All get the driver and plain dictionaries."""

    def registered(self, driver: Any, executorInfo: Any, frameworkInfo: Any, slaveInfo: Any) -> None: ...

    def reregistered(self, driver: Any, slaveInfo: Any) -> None: ...

    def disconnected(self, driver: Any) -> None: ...

    def launchTask(self, driver: Any, task: Any) -> None: ...

    def launchTaskGroup(self, driver: Any, task_infos: Any) -> None: ...

    def killTask(self, driver: Any, taskId: Any) -> None: ...

    def frameworkMessage(self, driver: Any, message: Any) -> None: ...

    def shutdown(self, driver: Any) -> None: ...

    def error(self, driver: Any, message: Any) -> None: ...


class _End(NamedTuple):
    """How one attempt to follow the agent ended."""

    reason: str
    was_subscribed: bool = False
    fatal: bool = False


class ExecutorDriver:
    """Drive one executor. `end_process` is called with a status when `shutdown` overruns the grace period."""

    def __init__(
        self,
        executor: Executor,
        settings: ExecutorSettings,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.executor = executor
        self.settings = settings
        self.callback_failure_count = 0
        self._uniform = uniform
        self._end_process = end_process
        self._caller = Caller()
        # One lock guards all that follows; its condition tells of each change.
        self._changed = threading.Condition()
        self._is_running = False
        self._is_connected = False
        self._was_registered = False
        self._is_shutting_down = False
        self._fatal: str | None = None
        self._stream: EventStream | None = None
        self._threads: list[threading.Thread] = []
        self._tasks: dict[str, JsonObject] = {}
        self._unacknowledged: dict[bytes, JsonObject] = {}
        self._unsent: dict[bytes, None] = {}
        self._told: list[bytes] = []  # the updates in the SUBSCRIBE that is on its way

    @property
    def connected(self) -> bool:
        """Say whether the agent has taken us in and the stream lives."""
        return self._is_connected

    @property
    def aborted(self) -> bool:
        """Say whether the driver does not run (any more)."""
        return not self._is_running

    @property
    def unacknowledged_count(self) -> int:
        """Return how many status updates the agent has not confirmed."""
        with self._changed:
            return len(self._unacknowledged)

    # --- beginning and end

    def start(self) -> None:
        """Begin; returns at once. A driver is started once."""
        with self._changed:
            assert not self._threads, "an executor driver is started once"
            self._is_running = True
            self._begin("mesos executor driver", self._run)
            self._begin("mesos executor updates", self._send_updates)

    def stop(self) -> None:
        """End soon, without a word to the agent; updates that were not flushed are lost. Any thread, any time."""
        with self._changed:
            self._is_running = False
            self._is_connected = False
            stream = self._stream
            self._changed.notify_all()
        if stream is not None:
            stream.close()
        self._caller.close_idle()

    def abort(self) -> None:
        """Do as `stop` does: pymesos' interface has both."""
        self.stop()

    def join(self) -> None:
        """Wait until all threads of the driver have ended, also a `shutdown` that still runs. Not for callbacks."""
        joined = 0
        while joined < len(self._threads):  # a shutdown adds one
            self._threads[joined].join()
            joined += 1

    def run(self) -> None:
        """Start, and return when all is over."""
        self.start()
        self.join()

    def flush(self, timeout_ms: int) -> bool:
        """Wait until the agent has confirmed all updates; return whether it has. Not for callbacks but `shutdown`."""
        deadline_ms = _now_ms() + timeout_ms
        with self._changed:
            while self._unacknowledged:
                left_ms = deadline_ms - _now_ms()
                is_hopeless = not self._is_running or (self._is_shutting_down and not self._is_connected)
                if left_ms <= 0 or is_hopeless:
                    return False
                self._changed.wait(left_ms / 1000)
        return True

    # --- calls

    def sendStatusUpdate(self, status: Mapping[str, Any]) -> None:
        """Tell the state of a task. Never blocks: kept, and sent in order until the agent acknowledges it.

        uuid, timestamp, source and executor_id are filled in. Any thread, connected or not.

        :raises ValueError: no task_id, or a state that executors must not send.
        :raises BadCall: it is no JSON, or above UPDATE_BYTES_MAX.
        :raises QueueFull: UPDATES_MAX updates wait for the agent already.
        """
        update = dict(status)
        if not (update.get("task_id") or {}).get("value"):
            raise ValueError(f"a status update without task_id: {update}")
        state = update.get("state")
        if not isinstance(state, str) or not state.startswith("TASK_") or state == "TASK_STAGING":
            raise ValueError(f"an executor must not send the state {state!r}: agents end it for that")
        key = b64decode(update["uuid"]) if "uuid" in update else uuid.uuid4().bytes
        update["uuid"] = b64encode(key).decode("ascii")
        update.setdefault("timestamp", time.time())
        update.setdefault("source", "SOURCE_EXECUTOR")
        update.setdefault("executor_id", {"value": self.settings.executor_id})
        encoded = encode_call({"type": "UPDATE", "update": update})
        if len(encoded) > UPDATE_BYTES_MAX:
            raise BadCall(f"a status update of {len(encoded)} bytes is above the limit of {UPDATE_BYTES_MAX}")
        kept = json.loads(encoded)["update"]  # what the caller changes later is not ours
        with self._changed:
            if len(self._unacknowledged) >= UPDATES_MAX:
                raise QueueFull(f"{UPDATES_MAX} status updates wait for the agent's acknowledgement already")
            self._unacknowledged[key] = {"status": kept}
            self._unsent[key] = None
            self._changed.notify_all()

    def sendFrameworkMessage(self, data: str) -> None:
        """Send `data` (base64) to the scheduler; Mesos gives no promise that it arrives.

        :raises Disconnected, HttpError, CallFailed: it was surely not sent, or may not have been.
        """
        if not self._is_connected:
            raise Disconnected("not subscribed at the agent now; nothing was sent")
        self._call("MESSAGE", may_repeat=False, message={"data": data})

    def _call(self, kind: str, *, may_repeat: bool, **fields: Any) -> None:
        answer = self._caller.call(
            self.settings.agent, PATH, self._encode(kind, **fields), self._headers(), may_repeat=may_repeat
        )
        if not 200 <= answer.status < 300:
            raise HttpError(answer.status, answer.text, about=f"{kind} to agent {self.settings.agent}")

    def _encode(self, kind: str, **fields: Any) -> bytes:
        call = {
            "type": kind,
            "framework_id": {"value": self.settings.framework_id},
            "executor_id": {"value": self.settings.executor_id},
            **fields,
        }
        return encode_call(call)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.settings.token is not None:
            headers["Authorization"] = f"Bearer {self.settings.token}"
        return headers

    # --- the thread that sends updates

    def _send_updates(self) -> None:
        while True:
            with self._changed:
                while self._is_running and not (self._is_connected and self._unsent):
                    self._changed.wait()
                if not self._is_running:
                    return
                key = next(iter(self._unsent))
                update = self._unacknowledged.get(key)
            if update is None or self._send_update(update):
                with self._changed:
                    self._unsent.pop(key, None)
            else:
                self._pause()

    def _send_update(self, update: JsonObject) -> bool:
        """Return whether the agent has it, or will never take it."""
        try:
            # The same update twice is nothing to an agent: it knows its uuid.
            self._call("UPDATE", may_repeat=True, update=update)
        except CallFailed as error:
            logger.warning("a status update waits: %s", error)
            return False
        except HttpError as error:
            if error.status != 400:
                logger.warning("a status update waits: %s", error)
                return False
            logger.error("the agent will never take a status update, it is dropped: %s: %s", error, update)
            with self._changed:
                self._unacknowledged.pop(b64decode(update["status"]["uuid"]), None)
                self._changed.notify_all()
        return True

    def _pause(self) -> None:
        """Wait a moment, or until the driver stops."""
        longest_ms = max(1, min(RETRY_MS_MAX, self.settings.retry_ms_max))
        deadline_ms = _now_ms() + self._uniform(min(RETRY_MS_MIN, longest_ms), longest_ms)
        with self._changed:
            while self._is_running and (left_ms := deadline_ms - _now_ms()) > 0:
                self._changed.wait(left_ms / 1000)

    # --- following the agent: the driver's thread

    def _run(self) -> None:
        deadline_ms = _now_ms() + REGISTRATION_MS_MAX
        while self._is_running:
            end = self._follow()
            if not self._is_running or self._is_shutting_down:
                return
            if end.fatal:
                logger.error("the executor driver is aborted: %s", end.reason)
                self.stop()
                self._guard("error", self.executor.error, self, end.reason)
                return
            if end.was_subscribed:
                self._guard("disconnected", self.executor.disconnected, self)
                window_ms = self.settings.recovery_timeout_ms if self.settings.checkpoint else 0
                deadline_ms = _now_ms() + window_ms
            if _now_ms() >= deadline_ms:
                self._begin_shutdown(f"the agent is gone ({end.reason}) and not to be waited for any longer")
                return
            logger.warning("no stream from agent %s: %s", self.settings.agent, end.reason)
            self._pause()

    def _follow(self) -> _End:
        """Subscribe and deliver events until the stream ends, however that happens."""
        stream = EventStream(self.settings.agent)
        with self._changed:
            if not self._is_running:
                return _End("stopped")
            self._stream = stream
            self._told = list(self._unacknowledged)
            subscribe = {
                "unacknowledged_tasks": list(self._tasks.values()),
                "unacknowledged_updates": list(self._unacknowledged.values()),
            }
        try:
            body = self._encode("SUBSCRIBE", subscribe=subscribe)
            answer = stream.open(PATH, body, self._headers(), connect_timeout_ms=CONNECT_TIMEOUT_MS)
            if answer.status == 200:
                self._deliver_all(stream)
                reason = "the agent ended the stream"
            else:
                reason = str(HttpError(answer.status, answer.text, about="SUBSCRIBE at the agent"))
                if answer.status in _FATAL:
                    self._fatal = reason
        except StreamBroken as error:
            reason = str(error)
        finally:
            with self._changed:
                was_subscribed = self._is_connected
                self._stream = None
                self._is_connected = False
                self._changed.notify_all()
            stream.release()
            self._caller.close_idle()
        if self._fatal is not None:
            return _End(self._fatal, fatal=True)
        return _End(reason, was_subscribed=was_subscribed)

    def _deliver_all(self, stream: EventStream) -> None:
        for records in stream.records(record_bytes_max=RECORD_BYTES_MAX):
            for record in records:
                if not self._is_running:
                    return
                self._deliver(decode_event(record))
                if self._fatal is not None:
                    return
            stream.allow_silence(SILENCE_MS_MAX)

    def _deliver(self, event: JsonObject) -> None:
        kind = event.get("type")
        if kind == "SHUTDOWN":
            self._begin_shutdown("the agent asks for it")
            return
        if kind == "HEARTBEAT" or (self._is_shutting_down and kind != "ACKNOWLEDGED"):
            return
        handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
        if handler is None:
            logger.warning("an event of unknown type %r was passed over", kind)
            return
        assert isinstance(kind, str)
        body = event.get(kind.lower())
        if not isinstance(body, dict):
            raise StreamBroken(f"an event of type {kind} has no {kind.lower()!r}")
        try:
            handler(self, body)
        except (KeyError, TypeError, ValueError) as error:
            raise StreamBroken(f"an event of type {kind} lacks what it must have: {error!r}") from error

    def _on_subscribed(self, info: JsonObject) -> None:
        with self._changed:
            if not self._is_running:
                return
            for key in self._told:
                self._unsent.pop(key, None)
            self._is_connected = True
            is_first = not self._was_registered
            self._was_registered = True
            self._changed.notify_all()
        agent = info.get("agent_info", {})
        if is_first:
            framework = info.get("framework_info", {})
            self._guard(
                "SUBSCRIBED", self.executor.registered, self, info.get("executor_info", {}), framework, agent
            )
        else:
            self._guard("SUBSCRIBED", self.executor.reregistered, self, agent)

    def _on_launch(self, event: JsonObject) -> None:
        task = event["task"]
        if self._take_task(task) and not self._guard("LAUNCH", self.executor.launchTask, self, task):
            self._report_failed_launch(task)

    def _on_launch_group(self, event: JsonObject) -> None:
        tasks = [task for task in event["task_group"]["tasks"] if self._take_task(task)]
        if tasks and not self._guard("LAUNCH_GROUP", self.executor.launchTaskGroup, self, tasks):
            for task in tasks:
                self._report_failed_launch(task)

    def _take_task(self, task: JsonObject) -> bool:
        task_id = str(task["task_id"]["value"])
        with self._changed:
            is_new = task_id not in self._tasks
            self._tasks.setdefault(task_id, task)
        if not is_new:
            logger.warning("task %s was launched twice; the second time is passed over", task_id)
        return is_new

    def _report_failed_launch(self, task: JsonObject) -> None:
        try:
            self.sendStatusUpdate(
                {
                    "task_id": task["task_id"],
                    "state": "TASK_FAILED",
                    "message": "the executor failed to launch it",
                }
            )
        except (BadCall, QueueFull) as error:
            logger.error("nobody is told that task %s was not launched: %s", task["task_id"]["value"], error)

    def _on_kill(self, event: JsonObject) -> None:
        self._guard("KILL", self.executor.killTask, self, event["task_id"])

    def _on_acknowledged(self, event: JsonObject) -> None:
        key = b64decode(event["uuid"])
        with self._changed:
            self._unacknowledged.pop(key, None)
            self._unsent.pop(key, None)
            self._tasks.pop(str(event["task_id"]["value"]), None)
            self._changed.notify_all()

    def _on_message(self, event: JsonObject) -> None:
        self._guard("MESSAGE", self.executor.frameworkMessage, self, event["data"])

    def _on_error(self, event: JsonObject) -> None:
        self._fatal = str(event.get("message") or "the agent gave no reason")

    # --- the end

    def _begin_shutdown(self, reason: str) -> None:
        with self._changed:
            if self._is_shutting_down or not self._is_running:
                return
            self._is_shutting_down = True
            self._begin("mesos executor shutdown", self._shut_down)
        logger.warning("shutting down within %d ms: %s", self.settings.shutdown_grace_ms, reason)

    def _shut_down(self) -> None:
        grace_ms = self.settings.shutdown_grace_ms
        began_ms = _now_ms()
        overdue = threading.Timer(grace_ms / 1000, self._end_overdue)
        overdue.daemon = True
        overdue.start()
        self._guard("SHUTDOWN", self.executor.shutdown, self)
        if self._is_connected:
            # Last words are worth waiting for, but the agent's SIGKILL is not.
            self.flush(grace_ms * 4 // 5 - (_now_ms() - began_ms))
        overdue.cancel()
        self.stop()

    def _end_overdue(self) -> None:
        logger.error("shutdown took longer than the grace period; this process ends now")
        self._end_process(1)

    def _begin(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._run_thread, args=(name, target), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run_thread(self, name: str, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception as error:  # the thread's top frame: without it nobody would hear that it has ended
            logger.exception("the thread %r failed: the executor driver is aborted", name)
            self.stop()
            self._guard("error", self.executor.error, self, f"our mistake in the thread {name!r}: {error!r}")

    def _guard(self, what: str, call: Callable[..., None], *args: Any) -> bool:
        """Make a callback; return whether it returned."""
        try:
            call(*args)
        except Exception:  # the user's code: it must not cost the executor its agent
            self.callback_failure_count += 1
            logger.exception("the callback for %s raised; the driver goes on", what)
            return False
        return True


_HANDLERS: dict[str, Callable[[ExecutorDriver, JsonObject], None]] = {
    "SUBSCRIBED": ExecutorDriver._on_subscribed,
    "LAUNCH": ExecutorDriver._on_launch,
    "LAUNCH_GROUP": ExecutorDriver._on_launch_group,
    "KILL": ExecutorDriver._on_kill,
    "ACKNOWLEDGED": ExecutorDriver._on_acknowledged,
    "MESSAGE": ExecutorDriver._on_message,
    "ERROR": ExecutorDriver._on_error,
}


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
