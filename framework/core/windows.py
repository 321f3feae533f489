"""Mesos' questions for agents, observed: which inverse offers are open, and whether a question that was answered still stands.

Mesos asks whoever has something on the agent, and again after each answer's filter, whatever the answer was, for as long as the
maintenance is scheduled. So a question that is not repeated was withdrawn, unless we have nothing there any more. One that
Mesos rescinds, or about an agent that is offered without a planned unavailability, was surely withdrawn. Without a connection
nothing is known, and after one begins agents must come back first.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from stoker.framework.core.departures import CAUSE_MAINTENANCE, Drain
from stoker.framework.model import InverseOffer, Offer, Settings

RESCINDED_MS = 1_000  # a changed schedule rescinds its questions and asks anew, at once


@dataclass(slots=True)
class Question:
    """About one agent. `due_ms`: when it is taken for withdrawn unless it is repeated; None: it is open.

    `is_certain`: also where we have nothing on the agent.
    """

    due_ms: int | None
    is_certain: bool = False


class Windows:
    """See the module. Bounded by what Mesos asks at a time, and the catalog's drains."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.open: dict[str, InverseOffer] = {}  # by id
        self.questions: dict[str, Question] = {}  # by agent id

    def is_open(self, agent_id: str) -> bool:
        return any(offer.agent_id == agent_id for offer in self.open.values())

    def is_withdrawn(self, agent_id: str, now_ms: int, *, is_used: bool) -> bool:
        """Return whether the agent is not wanted back any more; `is_used`: an executor of ours is there."""
        question = self.questions.get(agent_id)
        if question is None or question.due_ms is None or now_ms < question.due_ms:
            return False
        return is_used or question.is_certain

    def asked(self, offers: Iterable[InverseOffer]) -> None:
        for offer in offers:
            self.open[offer.offer_id] = offer
            self.questions[offer.agent_id] = Question(None)

    def rescinded(self, offer_id: str, now_ms: int) -> None:
        offer = self.open.pop(offer_id, None)
        if offer is not None:
            self._close(offer.agent_id, now_ms + RESCINDED_MS, is_certain=True)

    def answered(self, offer_ids: Iterable[str], refuse_ms: int, now_ms: int) -> None:
        for offer_id in offer_ids:
            offer = self.open.pop(offer_id, None)
            if offer is not None:
                self._close(offer.agent_id, now_ms + refuse_ms + self._settings.maintenance_forget_ms)

    def offered(self, offers: Iterable[Offer], now_ms: int) -> None:
        for offer in offers:
            if offer.agent_id in self.questions and not offer.unavailable_from_ms:
                self._close(offer.agent_id, now_ms, is_certain=True)

    def forget(self, drains: Container[str]) -> None:
        """Drop the questions that nothing follows from: they are closed, and their agents not drained."""
        asked = {offer.agent_id for offer in self.open.values()}
        for agent_id in [i for i in self.questions if i not in asked and i not in drains]:
            del self.questions[agent_id]

    def disconnected(self) -> None:
        self.open.clear()

    def subscribed(self, drains: Iterable[Drain], now_ms: int) -> None:
        self.open.clear()
        due_ms = now_ms + self._settings.unknown_patience_ms + self._settings.maintenance_forget_ms
        asked = {drain.agent_id for drain in drains if drain.cause == CAUSE_MAINTENANCE}
        self.questions = {agent_id: Question(due_ms) for agent_id in sorted(asked)}

    def _close(self, agent_id: str, due_ms: int, *, is_certain: bool = False) -> None:
        if not self.is_open(agent_id):
            self.questions[agent_id] = Question(due_ms, is_certain)
