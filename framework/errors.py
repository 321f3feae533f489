"""What can go wrong in a scheduler's shell; each leaf says who can act on it."""

from __future__ import annotations

from stoker.framework.model import Refusal


class FrameworkError(Exception):
    """Base of all errors of this package."""


class ConfigError(FrameworkError):
    """The configuration is wrong: the operator mends it. `problems` holds all that was found, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Refused(FrameworkError):
    """A request cannot be granted: its sender mends it. Nothing was changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class NotLeading(FrameworkError):
    """This scheduler does not lead (any more). What was asked has surely not been done: ask again, or elsewhere."""


class Overloaded(FrameworkError):
    """A bounded queue is full. What was asked has surely not been done: ask again later."""


class OutcomeUnknown(FrameworkError):
    """No commit in time: it may have been done or not. Ask again; what is idempotent by name or key stays so."""


class Fatal(FrameworkError):
    """This process cannot go on, and trying again would not help: the operator reads the one line and acts."""


class OtherCluster(Fatal):
    """The journal is that of another cluster than this scheduler is for."""


class Uninstalled(Fatal):
    """The cluster that this scheduler led is no more, as the operator asked: the process has done its work."""


class OfUninstalled(Fatal):
    """The journal is that of a cluster that was uninstalled before: to be started with it is a mistake of usage."""


class BeginAnew(FrameworkError):
    """This leadership is over, and the next one, with what the journal says now, may be ours at once."""


class LedElsewhere(NotLeading):
    """Another scheduler leads: `leader` is its URL, and whoever asked here is sent there."""

    def __init__(self, leader: str) -> None:
        super().__init__(f"the leader is {leader}")
        self.leader = leader


class MustWait(FrameworkError):
    """This scheduler must not lead now, and nothing was taken or written; the text says what it waits for."""
