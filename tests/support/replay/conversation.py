"""What came on a stream and was not yet expected, and which recorded event an event may stand for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from support.replay.recording import Message
from support.replay.wire import Arrived, Exchange


@dataclass
class Conversation:
    """What came on the streams of one name and was not yet expected."""

    exchange: Exchange
    strangers: set[str]  # agents whose offers are let lie: the recording has fewer
    read: int = 0
    offers: list[Arrived] = field(default_factory=list)  # one offer each
    heartbeats: list[Arrived] = field(default_factory=list)
    pending: list[Arrived] = field(default_factory=list)
    heartbeat_times: list[float] = field(default_factory=list)

    def alive(self) -> list[Arrived]:
        """Return the offers that were not rescinded since."""
        rescinded = [item.event["rescind"] for item in self.pending if item.event["type"] == "RESCIND"]
        gone = {item["offer_id"]["value"] for item in rescinded}
        return [offer for offer in self.offers if offer.event["id"]["value"] not in gone]

    def take(self) -> None:
        """Sort what has come since."""
        while self.read < len(self.exchange.events):
            arrived = self.exchange.events[self.read]
            self.read += 1
            kind = arrived.event["type"]
            if kind == "OFFERS":
                for offer in arrived.event["offers"]["offers"]:
                    if offer["agent_id"]["value"] not in self.strangers:
                        self.offers.append(arrived._replace(event=offer))
            elif kind == "HEARTBEAT":
                self.heartbeats.append(arrived)
                self.heartbeat_times.append(arrived.at)
            else:
                self.pending.append(arrived)


def kin(event: Message) -> tuple[str, ...]:
    """Return what an event must have in common with the recorded one to be taken for it."""
    kind = event["type"]
    match kind:
        case "UPDATE":
            return kind, event["update"]["status"]["task_id"]["value"]
        case "FAILURE":
            return kind, event["failure"].get("executor_id", {}).get("value", "")
        case "UPDATE_OPERATION_STATUS":
            return kind, event["update_operation_status"]["status"].get("operation_id", {}).get("value", "")
        case "MESSAGE":
            return kind, event["message"]["data"]
        case "ACKNOWLEDGED":
            return kind, event["acknowledged"]["uuid"]
    return (kind,)


def brief(event: Message) -> str:
    text = json.dumps({key: value for key, value in event.items() if key != "type"})
    return f"{event['type']} {text if len(text) < 300 else text[:300] + '...'}"


def waiting(conversation: Conversation) -> str:
    came = [brief(arrived.event) for arrived in conversation.pending]
    return f"waiting are {came}" if came else "nothing else is waiting"
