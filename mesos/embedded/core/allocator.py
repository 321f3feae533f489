"""Who is offered what: free resources of agents, roles of frameworks, decline filters, fair shares, quotas.

Theory of operation. The free resources of an agent go to the (framework, role) with the smallest dominant share of those that can
use them; what it may not have (reserved for others, above its limit, laid away for a guarantee) goes to the next. A refusal leaves
a filter on (framework, role, agent); it hides what is contained in the refused resources until it expires, so that more than was
refused is offered at once. Granted resources stay allocated until `recover`. Nothing is random: agents are walked in the order of
their registration.

An agent that nobody wanted is not looked at again until something changes: its resources, a filter on it, or any framework's demand
(under a quota: at every allocation). So an allocation costs what changed, however many agents there are.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from stoker.mesos.embedded.core import quota as quotas
from stoker.mesos.embedded.core.codec import Message
from stoker.mesos.embedded.core.constraints import Constraints, Facts
from stoker.mesos.embedded.core.quota import Quota
from stoker.mesos.embedded.core.resources import EMPTY, Quantities, Resources

# Mesos does not offer less than 0.01 cpus together with less than 32 MB, unless the framework says otherwise.
MINIMUM: tuple[Quantities, ...] = ({"cpus": 10}, {"mem": 32_000})
REFUSE_MS_DEFAULT = 5000
REFUSE_MS_MAX = 365 * 86_400_000
EXPIRIES_MIN = 10_000  # ends of filters that are remembered before those of forgotten filters are looked for
FILTERS_MAX = 1000  # per framework, role and agent; the oldest goes first


class Grant(NamedTuple):
    """Resources to offer."""

    framework_id: str
    role: str
    agent_id: str
    resources: Resources


class Demand(NamedTuple):
    """What a framework can use, besides its roles: `minimums` are its offer_filters by role."""

    capabilities: frozenset[str] = frozenset()
    minimums: dict[str, tuple[Quantities, ...]] = {}
    constraints: Constraints | None = None


_NO_FACTS = Facts()
_NO_DEMAND = Demand()


class _Filter(NamedTuple):
    refused: Resources
    expires_ms: int


@dataclass(slots=True)
class _Framework:
    roles: tuple[str, ...]
    suppressed: set[str]
    demand: Demand
    active: bool = True
    filters: dict[tuple[str, str], list[_Filter]] = field(default_factory=dict)
    excluded: dict[tuple[str, str], bool] = field(
        default_factory=dict
    )  # constraints' verdicts, by role and agent


@dataclass(slots=True)
class _Agent:
    number: int
    total: Resources
    free: Resources
    facts: Facts
    has_gpus: bool
    withheld: Resources = field(default_factory=lambda: EMPTY)
    active: bool = True
    held: dict[tuple[str, str], Resources] = field(default_factory=dict)


class _Pair(NamedTuple):
    """A role of a framework that wants offers."""

    framework_id: str
    framework: _Framework
    role: str
    rank: int
    minimum: tuple[Quantities, ...]


def refuse_ms(seconds: float, default_ms: int = REFUSE_MS_DEFAULT) -> int:
    """Return the duration of a filter that was asked for as `refuse_seconds`: negative is the default, a year at most."""
    if not seconds >= 0:
        return default_ms
    return REFUSE_MS_MAX if seconds * 1000 > REFUSE_MS_MAX else round(seconds * 1000)


def filter_ms(body: Message, default_ms: int) -> int:
    """Return how long a call's `filters` hide what it gives back; `default_ms` if they do not say."""
    filters = body.get("filters")
    return default_ms if filters is None else refuse_ms(filters.get("refuse_seconds", -1.0), default_ms)


class Allocator:
    """Free resources, shares and filters; `region` is the master's."""

    def __init__(self, interval_ms: int, region: str | None = None) -> None:
        self._interval_ms = interval_ms
        self._region = region
        self._agents: dict[str, _Agent] = {}
        self._numbers = itertools.count()
        self._total: Quantities = {}
        self._frameworks: dict[str, _Framework] = {}
        self._by_role: dict[
            str, Quantities
        ] = {}  # also of the roles above; "role/." is the role without those below
        self._by_framework: dict[tuple[str, str], Quantities] = {}
        self._counts: dict[str | tuple[str, str], int] = {}  # how often each of these was granted something
        self._unreserved: dict[str, Quantities] = {}  # what a role and those below it hold of it
        self._reserved: dict[
            str, Quantities
        ] = {}  # what is reserved for a role and those below it, held or not
        self._quotas: dict[str, Quota] = {}
        self._headroom: Quantities | None = (
            None  # what is free and unreserved, kept while anything is guaranteed
        )
        self._weights: dict[str, float] = {}
        self._expiries: list[tuple[int, str]] = []
        self._expiries_max = EXPIRIES_MIN
        self._candidates: set[str] = set()
        self._everywhere = False  # all agents are candidates

    # Agents.

    def add_agent(self, agent_id: str, total: Resources, facts: Facts = _NO_FACTS) -> None:
        """Know an agent, all of whose resources are free."""
        assert agent_id not in self._agents, agent_id
        agent = _Agent(next(self._numbers), total, EMPTY, facts, "gpus" in total.quantities())
        self._agents[agent_id] = agent
        self._set_free(agent, total)
        self._count_total(total, 1)
        self._candidates.add(agent_id)

    def remove_agent(self, agent_id: str) -> None:
        """Forget an agent with all that is held of it; later `recover`s of it do nothing."""
        agent = self._agents.pop(agent_id)
        self._set_free(agent, EMPTY)
        for (framework_id, role), resources in agent.held.items():
            self._count_held(Grant(framework_id, role, agent_id, resources), -1)
        self._count_total(agent.total, -1)
        self._candidates.discard(agent_id)
        for framework in self._frameworks.values():
            for role in framework.roles:
                framework.filters.pop((role, agent_id), None)
                framework.excluded.pop((role, agent_id), None)

    def charge(self, grant: Grant) -> None:
        """Count free resources as held: an agent came back with something that runs on it."""
        self._take(self._agents[grant.agent_id], grant)

    def set_agent_active(self, agent_id: str, active: bool) -> None:
        """Offer nothing of an agent, or offer it again; what is held stays held."""
        self._agents[agent_id].active = active
        self._candidates.add(agent_id)

    def update_agent(self, agent_id: str, total: Resources, facts: Facts | None = None) -> None:
        """Take the agent's new total, and put back what was withheld. What is held must be contained in the total."""
        agent = self._agents[agent_id]
        self._count_total(agent.total, -1)
        self._count_total(total, 1)
        rest = total
        for resources in agent.held.values():
            rest = rest - resources
        agent.total, agent.withheld = total, EMPTY
        self._set_free(agent, rest)
        agent.has_gpus = "gpus" in total.quantities()
        if facts is not None:
            agent.facts = facts
            for framework in self._frameworks.values():
                framework.excluded.clear()
        self._candidates.add(agent_id)

    def convert(
        self, agent_id: str, consumed: Resources, converted: Resources, holder: Grant | None = None
    ) -> None:
        """Turn resources into others of the same amount: `holder`'s, whose `resources` do not matter, or free ones."""
        agent = self._agents[agent_id]
        self._count_total(agent.total, -1)
        agent.total = agent.total - consumed + converted
        self._count_total(agent.total, 1)
        if holder is None:
            self._set_free(agent, agent.free - consumed + converted)
            self._candidates.add(agent_id)
            return
        key = (holder.framework_id, holder.role)
        self._count_held(holder._replace(resources=consumed), -1)
        agent.held[key] = agent.held[key] - consumed + converted
        self._count_held(holder._replace(resources=converted), 1)

    def withhold(self, agent_id: str, resources: Resources) -> None:
        """Offer `resources`, which are free, to nobody until `update_agent`."""
        agent = self._agents[agent_id]
        agent.withheld = agent.withheld + resources
        self._set_free(agent, agent.free - resources)

    def free(self, agent_id: str) -> Resources:
        """Return what nobody holds, and nobody will be offered for the time being."""
        agent = self._agents[agent_id]
        return agent.free + agent.withheld

    def total(self, agent_id: str) -> Resources:
        """Return all that the agent has, reserved and created as it is now."""
        return self._agents[agent_id].total

    def available(self, agent_id: str) -> Resources:
        """Return what may be offered next."""
        return self._agents[agent_id].free

    # Frameworks.

    def add_framework(
        self, framework_id: str, roles: tuple[str, ...], suppressed: set[str], demand: Demand = _NO_DEMAND
    ) -> None:
        self._frameworks[framework_id] = _Framework(roles, suppressed, demand)
        self._everywhere = True

    def update_framework(
        self, framework_id: str, roles: tuple[str, ...], suppressed: set[str], demand: Demand = _NO_DEMAND
    ) -> None:
        """Take new roles, suppression and demand; filters of roles that stay are kept."""
        framework = self._frameworks[framework_id]
        framework.roles, framework.suppressed, framework.active = roles, suppressed, True
        framework.demand = demand
        framework.filters = {key: value for key, value in framework.filters.items() if key[0] in roles}
        framework.excluded.clear()
        self._everywhere = True

    def deactivate(self, framework_id: str) -> None:
        """Offer nothing until `update_framework`; all its filters are forgotten."""
        self._frameworks[framework_id].active = False
        self._frameworks[framework_id].filters.clear()

    def remove_framework(self, framework_id: str) -> None:
        """Forget a framework; what it holds is still to be recovered."""
        for role in self._frameworks.pop(framework_id).roles:
            self._counts.pop((framework_id, role), None)
        here = {role for framework in self._frameworks.values() for role in framework.roles}
        kept = {name for role in here for name in (*_lineage(role), role + "/.")}
        self._counts = {
            name: n for name, n in self._counts.items() if isinstance(name, tuple) or name in kept
        }

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
        self._everywhere = True
        return True

    def filter_count(self, framework_id: str, role: str, agent_id: str) -> int:
        return len(self._frameworks[framework_id].filters.get((role, agent_id), ()))

    @property
    def expiry_count(self) -> int:
        """How many ends of filters are remembered."""
        return len(self._expiries)

    # Quotas and weights.

    def set_quota(self, role: str, quota: Quota) -> None:
        """Replace the quota of a role; an empty one is none."""
        if quota.limits or quota.guarantees:
            self._quotas[role] = quota
        else:
            self._quotas.pop(role, None)
        self._headroom = None
        if any(item.guarantees for item in self._quotas.values()):
            free = (agent.free.unreserved().quantities() for agent in self._agents.values())
            self._headroom = quotas.total_of(free)
        self._everywhere = True

    def set_weight(self, role: str, weight: float) -> None:
        """Let `role` have that many times the share of one of weight 1."""
        assert weight > 0
        self._weights[role] = weight
        self._everywhere = True

    @property
    def quotas(self) -> dict[str, Quota]:
        return self._quotas

    @property
    def weights(self) -> dict[str, float]:
        return self._weights

    @property
    def capacity(self) -> Quantities:
        """Return what all agents have."""
        return dict(self._total)

    def consumed(self, role: str) -> Quantities:
        """Return what counts against the role's quota: what it holds, and all that is reserved for it."""
        return quotas.total_of((self._unreserved.get(role, {}), self._reserved.get(role, {})))

    # Allocation.

    def recover(self, grant: Grant, now_ms: int, *, refuse_ms: int = 0) -> None:
        """Take back granted resources; with `refuse_ms` they are hidden from whom they were granted to."""
        agent = self._agents.get(grant.agent_id)
        if agent is None or not grant.resources:
            return
        key = (grant.framework_id, grant.role)
        agent.held[key] = agent.held[key] - grant.resources
        if not agent.held[key]:
            del agent.held[key]
        returned = grant.resources
        if returned.has_reserved:  # a task may have named a volume with another path
            returned = returned.spelled_as(agent.total)
        self._set_free(agent, agent.free + returned)
        self._count_held(grant, -1)
        self._candidates.add(grant.agent_id)
        framework = self._frameworks.get(grant.framework_id)
        if framework is None or not framework.active or not refuse_ms:
            return
        filters = framework.filters.setdefault((grant.role, grant.agent_id), [])
        expires_ms = now_ms + max(refuse_ms, self._interval_ms)
        filters.append(_Filter(grant.resources, expires_ms))
        del filters[:-FILTERS_MAX]
        heapq.heappush(self._expiries, (expires_ms, grant.agent_id))
        if len(self._expiries) > self._expiries_max:
            self._forget_expiries()

    def allocate(self, now_ms: int, only: str | None = None) -> list[Grant]:
        """Grant what is free and wanted, of all agents or of `only` one."""
        while self._expiries and self._expiries[0][0] <= now_ms:
            self._candidates.add(heapq.heappop(self._expiries)[1])
        pairs = self._pairs()
        grants: list[Grant] = []
        for agent_id, agent in list(self._walk(only)):
            if pairs and agent.active and agent.free:
                grants += self._allocate_agent(agent_id, agent, pairs, now_ms)
        return grants

    def _walk(self, only: str | None) -> Iterator[tuple[str, _Agent]]:
        if only is not None:
            self._candidates.discard(only)
            yield only, self._agents[only]
            return
        candidates, everywhere = self._candidates, self._everywhere or bool(self._quotas)
        self._candidates, self._everywhere = set(), False
        if everywhere:
            yield from self._agents.items()
            return
        known = [(name, self._agents[name]) for name in candidates if name in self._agents]
        yield from sorted(known, key=lambda item: item[1].number)

    def _pairs(self) -> list[_Pair]:
        return [
            _Pair(name, framework, role, rank, framework.demand.minimums.get(role, MINIMUM))
            for rank, (name, framework) in enumerate(self._frameworks.items())
            if framework.active
            for role in framework.roles
            if role not in framework.suppressed
        ]

    def _allocate_agent(self, agent_id: str, agent: _Agent, pairs: list[_Pair], now_ms: int) -> list[Grant]:
        grants = []
        for pair in sorted(pairs, key=self._precedence) if len(pairs) > 1 else pairs:
            if not agent.free:
                break
            offered = self._offerable(agent_id, agent, pair)
            if not offered or not _reaches(pair.minimum, offered):
                continue
            if self._is_filtered(pair, agent_id, offered, now_ms):
                continue
            grant = Grant(pair.framework_id, pair.role, agent_id, offered)
            self._take(agent, grant)
            grants.append(grant)
        return grants

    def _precedence(self, pair: _Pair) -> tuple[bool, list[tuple[float, int, str]], float, int, int]:
        """Order of (framework, role): unsatisfied guarantees, then shares from the top of the tree of roles down.

        Of equal shares the one that was granted something less often comes first.
        """
        role = pair.role
        top = role.split("/", 1)[0]
        quota = self._quotas.get(top)
        unsatisfied = quota is not None and bool(quotas.shortfall(quota.guarantees, self.consumed(top)))
        path = [
            (
                self._share(self._by_role.get(name, {})) / self._weights.get(name, 1.0),
                self._counts.get(name, 0),
                name,
            )
            for name in (*_lineage(role), role + "/.")
        ]
        key = (pair.framework_id, role)
        share = self._share(self._by_framework.get(key, {}))
        return not unsatisfied, path, share, self._counts.get(key, 0), pair.rank

    def _offerable(self, agent_id: str, agent: _Agent, pair: _Pair) -> Resources | None:
        framework, role = pair.framework, pair.role
        capabilities = framework.demand.capabilities
        if agent.has_gpus and "GPU_RESOURCES" not in capabilities:
            return None
        if agent.facts.region not in (None, self._region) and "REGION_AWARE" not in capabilities:
            return None
        constraints = framework.demand.constraints
        if constraints is not None:
            excluded = framework.excluded.get((role, agent_id))
            if excluded is None:
                excluded = not constraints.accepts(role, agent.facts)
                framework.excluded[role, agent_id] = excluded
            if excluded:
                return None
        offered = agent.free.for_role(role)
        if agent.free.has_reserved and "RESERVATION_REFINEMENT" not in capabilities:
            offered = offered.select(lambda key: len(key.stack) <= 1)
        if self._quotas:
            offered = self._within_quota(role, offered)
        return offered

    def _within_quota(self, role: str, offered: Resources) -> Resources:
        """Chop what is above a limit, and what would leave less free than is guaranteed to other roles."""
        for name in _lineage(role):
            quota = self._quotas.get(name)
            if quota is not None and quota.limits:
                consumed = self.consumed(name)
                offered = offered.chopped(
                    {item: limit - consumed.get(item, 0) for item, limit in quota.limits.items()}
                )
        if self._headroom is None:
            return offered
        top = role.split("/", 1)[0]
        others = quotas.total_of(
            quotas.shortfall(quota.guarantees, self.consumed(name))
            for name, quota in self._quotas.items()
            if name != top
        )
        free = self._headroom
        return offered.chopped({item: free.get(item, 0) - amount for item, amount in others.items()})

    def _is_filtered(self, pair: _Pair, agent_id: str, offered: Resources, now_ms: int) -> bool:
        filters = pair.framework.filters.get((pair.role, agent_id))
        if not filters:
            return False
        filters[:] = [item for item in filters if now_ms < item.expires_ms]
        return any(item.refused.contains(offered) for item in filters)

    def _forget_expiries(self) -> None:
        """Drop the ends of filters that were revived away: with filters of a year they would pile up."""
        self._expiries = [
            (item.expires_ms, agent_id)
            for framework in self._frameworks.values()
            for (_, agent_id), filters in framework.filters.items()
            for item in filters
        ]
        heapq.heapify(self._expiries)
        self._expiries_max = max(EXPIRIES_MIN, 2 * len(self._expiries))

    # Counts.

    def _set_free(self, agent: _Agent, free: Resources) -> None:
        if self._headroom is not None:
            quotas.add(self._headroom, agent.free.unreserved().quantities(), -1)
            quotas.add(self._headroom, free.unreserved().quantities())
        agent.free = free

    def _take(self, agent: _Agent, grant: Grant) -> None:
        key = (grant.framework_id, grant.role)
        self._set_free(agent, agent.free - grant.resources)
        agent.held[key] = agent.held.get(key, EMPTY) + grant.resources
        self._count_held(grant, 1)
        for name in (*_lineage(grant.role), grant.role + "/."):
            self._counts[name] = self._counts.get(name, 0) + 1
        self._counts[key] = self._counts.get(key, 0) + 1

    def _count_held(self, grant: Grant, sign: int) -> None:
        amounts = grant.resources.quantities()
        unreserved = grant.resources.unreserved().quantities()
        for name in _lineage(grant.role):
            quotas.add(self._by_role.setdefault(name, {}), amounts, sign)
            quotas.add(self._unreserved.setdefault(name, {}), unreserved, sign)
        quotas.add(self._by_role.setdefault(grant.role + "/.", {}), amounts, sign)
        key = (grant.framework_id, grant.role)
        total = self._by_framework.setdefault(key, {})
        quotas.add(total, amounts, sign)
        if not any(total.values()):
            del self._by_framework[key]

    def _count_total(self, total: Resources, sign: int) -> None:
        quotas.add(self._total, total.quantities(), sign)
        if not total.has_reserved:
            return
        for key, amount in total.items.items():
            if key.stack and isinstance(amount, int):
                for name in _lineage(key.role):
                    quotas.add(self._reserved.setdefault(name, {}), {key.name: amount}, sign)

    def _share(self, amounts: Quantities) -> float:
        shares = (amount / self._total[name] for name, amount in amounts.items() if amount)
        return max(shares, default=0.0)


@functools.lru_cache(maxsize=10_000)
def _lineage(role: str) -> tuple[str, ...]:
    """Return the role and those above it, the topmost first."""
    parts = role.split("/")
    return tuple("/".join(parts[: depth + 1]) for depth in range(len(parts)))


def _reaches(minimum: tuple[Quantities, ...], offered: Resources) -> bool:
    if not minimum:
        return True
    amounts = offered.quantities()
    return any(all(amounts.get(name, 0) >= least for name, least in item.items()) for item in minimum)
