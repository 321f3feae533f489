"""What can go wrong between us and Mesos; each leaf says what is known about the call and who can act."""

from __future__ import annotations


class MesosError(Exception):
    """Base of all errors of this package."""


class Disconnected(MesosError):
    """There is no subscribed stream now: nothing was sent. Ask again after the next `registered` or `reregistered`."""


class CallFailed(MesosError):
    """The connection failed under a call: Mesos may or may not have received it. Mesos' next events will tell."""


class HttpError(MesosError):
    """Mesos refused a call: nothing was done. `status` and `body` are its answer, for the log and the operator."""

    def __init__(self, status: int, body: str, *, about: str) -> None:
        text = " ".join(body.split()) or "no text"
        if text.startswith("<"):
            text = "a page of HTML, which is not how Mesos answers"
        hint = f" ({_NOWHERE_HINT})" if status in (404, 501) else ""
        super().__init__(f"{about}: HTTP {status}: {text[:_TEXT_CHARS_MAX]}{hint}")
        self.status = status
        self.body = body


class BadCall(MesosError):
    """A call that we built cannot be sent (too large, or no JSON): our own mistake. Nothing was sent."""


class StreamBroken(MesosError):
    """The event stream ended or cannot be understood any more; the driver subscribes again by itself."""


class QueueFull(MesosError):
    """A queue of ours is at its limit, which the text names: the other side does not keep up. Nothing was queued."""


_TEXT_CHARS_MAX = 1_000
_NOWHERE_HINT = "is there a Mesos master at this address? The master's port is 5050 as a rule"
