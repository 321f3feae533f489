"""Who is offered what: free resources of agents, roles of frameworks, decline filters, fair shares.

Theory of operation. An agent's free resources go whole to one (framework, role) at a time: the one with the smallest dominant
share, roles first, then frameworks within the role. A refusal leaves a filter on (framework, role, agent); it hides what is
contained in the refused resources until it expires, so that more than was refused is offered at once. Granted resources stay
allocated until `recover`. Nothing is random: agents are walked in the order of their registration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from stoker.mesos.embedded.core.resources import EMPTY, Resources

MIN_CPUS = 10  # thousandths; Mesos does not offer less than 0.01 cpus together with less than 32 MB
MIN_MEM = 32_000
REFUSE_MS_DEFAULT = 5000
REFUSE_MS_MAX = 365 * 86_400_000
FILTERS_MAX = 1000  # per framework, role and agent; the oldest goes first


class Grant(NamedTuple):
    """Resources to offer."""

    framework_id: str
    role: str
    agent_id: str
    resources: Resources


class _Filter(NamedTuple):
    refused: Resources
    expires_ms: int


@dataclass(slots=True)
class _Framework:
    roles: tuple[str, ...]
    suppressed: set[str]
    active: bool = True
    filters: dict[tuple[str, str], list[_Filter]] = field(default_factory=dict)


def refuse_ms(seconds: float) -> int:
    """Return the duration of a filter that was asked for as `refuse_seconds`: negative is the default, a year at most."""
    if not seconds >= 0:
        return REFUSE_MS_DEFAULT
    return REFUSE_MS_MAX if seconds * 1000 > REFUSE_MS_MAX else round(seconds * 1000)


class Allocator:
    """Free resources, shares and filters."""

    def __init__(self, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        self._free: dict[str, Resources] = {}
        self._total = EMPTY
        self._frameworks: dict[str, _Framework] = {}
        self._by_role: dict[str, Resources] = {}
        self._by_framework: dict[tuple[str, str], Resources] = {}

    def add_agent(self, agent_id: str, resources: Resources) -> None:
        self._free[agent_id] = resources
        self._total = self._total + resources

    def add_framework(self, framework_id: str, roles: tuple[str, ...], suppressed: set[str]) -> None:
        self._frameworks[framework_id] = _Framework(roles, suppressed)

    def update_framework(self, framework_id: str, roles: tuple[str, ...], suppressed: set[str]) -> None:
        """Take new roles and suppression; filters of roles that stay are kept."""
        framework = self._frameworks[framework_id]
        framework.roles, framework.suppressed, framework.active = roles, suppressed, True
        framework.filters = {key: value for key, value in framework.filters.items() if key[0] in roles}

    def deactivate(self, framework_id: str) -> None:
        """Offer nothing until `update_framework`; all its filters are forgotten."""
        self._frameworks[framework_id].active = False
        self._frameworks[framework_id].filters.clear()

    def remove_framework(self, framework_id: str) -> None:
        del self._frameworks[framework_id]

    def suppress(self, framework_id: str, roles: tuple[str, ...]) -> bool:
        """Offer nothing for `roles` (none means all); False, and nothing done, if one is not the framework's."""
        framework = self._frameworks[framework_id]
        if not set(roles) <= set(framework.roles):
            return False
        framework.suppressed |= set(roles or framework.roles)
        return True

    def revive(self, framework_id: str, roles: tuple[str, ...]) -> bool:
        """Forget suppression and filters of `roles` (none means all); False, and nothing done, for a foreign role."""
        framework = self._frameworks[framework_id]
        if not set(roles) <= set(framework.roles):
            return False
        revived = set(roles or framework.roles)
        framework.suppressed -= revived
        framework.filters = {key: value for key, value in framework.filters.items() if key[0] not in revived}
        return True

    def recover(self, grant: Grant, now_ms: int, *, refuse_ms: int = 0) -> None:
        """Take back granted resources; with `refuse_ms` they are hidden from whom they were granted to."""
        key = (grant.framework_id, grant.role)
        self._free[grant.agent_id] = self._free[grant.agent_id] + grant.resources
        self._by_role[grant.role] = self._by_role[grant.role] - grant.resources
        self._by_framework[key] = self._by_framework[key] - grant.resources
        framework = self._frameworks.get(grant.framework_id)
        if framework is None or not framework.active or not refuse_ms or not grant.resources:
            return
        filters = framework.filters.setdefault((grant.role, grant.agent_id), [])
        filters.append(_Filter(grant.resources, now_ms + max(refuse_ms, self._interval_ms)))
        del filters[:-FILTERS_MAX]

    def free(self, agent_id: str) -> Resources:
        """Return what nobody holds."""
        return self._free[agent_id]

    def filter_count(self, framework_id: str, role: str, agent_id: str) -> int:
        return len(self._frameworks[framework_id].filters.get((role, agent_id), ()))

    def allocate(self, now_ms: int) -> list[Grant]:
        """Grant all that is free and wanted."""
        grants = []
        for agent_id, free in self._free.items():
            if free.scalar("cpus") < MIN_CPUS and free.scalar("mem") < MIN_MEM:
                continue
            taker = self._choose(agent_id, free, now_ms)
            if taker is not None:
                grants.append(Grant(*taker, agent_id, free))
                self._grant(grants[-1])
        return grants

    def _choose(self, agent_id: str, free: Resources, now_ms: int) -> tuple[str, str] | None:
        best: tuple[float, str, float, int] | None = None
        taker: tuple[str, str] | None = None
        for rank, (framework_id, framework) in enumerate(self._frameworks.items()):
            for role in framework.roles:
                if not self._is_wanted(framework, role, agent_id, free, now_ms):
                    continue
                role_share = self._share(self._by_role.get(role, EMPTY))
                share = self._share(self._by_framework.get((framework_id, role), EMPTY))
                candidate = (role_share, role, share, rank)
                if best is None or candidate < best:
                    best, taker = candidate, (framework_id, role)
        return taker

    def _is_wanted(
        self, framework: _Framework, role: str, agent_id: str, free: Resources, now_ms: int
    ) -> bool:
        if not framework.active or role in framework.suppressed:
            return False
        filters = framework.filters.get((role, agent_id))
        if not filters:
            return True
        filters[:] = [item for item in filters if now_ms < item.expires_ms]
        return not any(item.refused.contains(free) for item in filters)

    def _grant(self, grant: Grant) -> None:
        key = (grant.framework_id, grant.role)
        self._free[grant.agent_id] = EMPTY
        self._by_role[grant.role] = self._by_role.get(grant.role, EMPTY) + grant.resources
        self._by_framework[key] = self._by_framework.get(key, EMPTY) + grant.resources

    def _share(self, resources: Resources) -> float:
        shares = (amount / self._total.scalars[key] for key, amount in resources.scalars.items())
        return max(shares, default=0.0)
