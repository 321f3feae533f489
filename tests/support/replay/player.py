"""Plays a recording again against a running Mesos, and compares what comes with what was recorded.

Each recorded call (of a scheduler, an executor, an operator) is made again at its time, each recorded answer, event and end of a
stream is awaited and compared. Times keep the recording's distances, divided by the script's scale.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterable
from typing import Any

from support.embedded import is_alive
from support.replay.bindings import Bindings, Difference
from support.replay.conversation import Conversation, brief, kin, waiting
from support.replay.offers import by_agent, merge, summary
from support.replay.puppets import Puppets
from support.replay.recording import Entry, Message, Recording
from support.replay.report import Rows
from support.replay.script import Script
from support.replay.timing import LATE_S, TICK_S, Timing
from support.replay.wire import (
    FIN,
    FINAL_CHUNK,
    Arrived,
    Exchange,
    connect,
    is_listening,
    request_bytes,
)

CONNECT_TIMEOUT_S = 20.0
RETRY_S = 0.02  # a master that leads anew recovers for 0.2 s, which must not be missed
AFTER_OFFERS_TICKS = 1.5  # in which other offers than those that came would have to come

_OFFERS = ("offers", "offers")
_JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
_COMPARED_HEADERS = ("Content-Type", "Allow", "WWW-Authenticate", "Transfer-Encoding", "Mesos-Stream-Id")
_FOREIGN_VARIABLES = ("LC_CTYPE", "REC_LOG")  # Python's own, and one that the recorder took out of its notes
_SHORTENED = re.compile(r"(.)\1*\.\.\. \((\d+) bytes\)")


class Lost(Exception):
    """What the rest of the scenario builds on did not come; it cannot be played on."""


class Player:
    """One run of one script. `play` returns when the recording is at its end, or lost."""

    def __init__(self, script: Script, recording: Recording, target: Any, puppets: Puppets) -> None:
        self.script, self.recording, self.target, self.puppets = script, recording, target, puppets
        self.scale = script.scale_on(target)
        self.bindings = Bindings(self.scale, frozenset(script.free) | target.free)
        self.bindings.is_shared = not target.is_embedded
        self.bindings.texts[script.recorded_executor] = puppets.command
        self.clock = puppets.clock
        self.rows = Rows(recording.name)
        self.conversations: dict[tuple[str, str, str], Conversation] = {}
        self.former: dict[tuple[str, str, str], Conversation] = {}  # those before the present ones
        self._unanswered: dict[tuple[str, str], list[tuple[Entry, Exchange]]] = {}
        self._strangers: set[str] = set()
        self._refused = recording.refused()
        self._all: list[Conversation] = []
        self.timing = Timing(self.clock, self.scale, script.patience_s)

    def play(self) -> Rows:
        """Play every line; whatever differs is in the rows."""
        entry = self.recording.entries[0]
        try:
            self._begin_row(entry)
            self.target.prepare(self.script, self.recording)
            self._strangers, self.bindings.more = self.target.beyond(self.recording.agents())
            phase_ms = self.recording.tick_phase_ms()
            self.timing.align(phase_ms, None if phase_ms is None else self.target.tick_at())
            for entry in self.recording.entries:
                self.timing.begin(entry)
                if entry.index not in self.script.skip:
                    self._play(entry)
                elif title := _title(entry, self.script):
                    self.rows.begin(entry.index + 1, title)
                    self.rows.skip("its script does not play it")
        except (Lost, self.target.HookFailed) as error:
            self.rows.fail(f"line {entry.index + 1}: {error}")
            self.rows.abandon(self._titles(entry.index + 1), "not reached")
        except self.target.MissingHook as missing:
            self.rows.skip(str(missing))
            self.rows.abandon(self._titles(entry.index + 1), str(missing), skipped=True)
        else:
            self._check_nothing_is_left()
        finally:
            self._leave()
        return self.rows

    # Lines.

    def _play(self, entry: Entry) -> None:
        if entry.index:
            self._begin_row(entry)
        stops = [("agent-stop", str(number), "never-started") for number in self.script.stopped]
        for step in (*(stops if entry.index == 0 else ()), *self.script.before.get(entry.index, ())):
            self._act(entry, step)
        match entry.kind:
            case "note":
                self._note(entry)
            case "call":
                self._call(entry)
            case "response":
                self._response(entry)
            case "event":
                self._event(entry)
            case "eof":
                self._eof(entry)
            case "connect":
                pass  # attempts of the recorded client while its server was away: here it tries until it is let in

    def _begin_row(self, entry: Entry) -> None:
        if title := _title(entry, self.script):
            self.rows.begin(entry.index + 1, title)

    def _titles(self, first: int) -> list[tuple[int, str]]:
        later = (entry for entry in self.recording.entries if entry.index >= first)
        return [(entry.index + 1, title) for entry in later if (title := _title(entry, self.script))]

    def _note(self, entry: Entry) -> None:
        if entry.who == "executor":
            self._executor_note(entry)
            return
        if entry.body.get("rule"):
            self._check_measured(entry)
        for step in self.script.steps_of(entry):
            self._act(entry, step)

    def _act(self, entry: Entry, step: tuple[str, ...]) -> None:
        """Do a step of the script: an order to an executor, or a hook of the running Mesos."""
        self.timing.pace(entry)
        match step:
            case ("executor-signal", name, number):
                self.puppets.latest(name).tell("signal", number=int(number))
            case ("executor-child-is-gone", name):
                self._check_child(name)
            case ("await-leader", number, agents):
                self.target.await_leader(int(number), int(agents), self.script.patience_s)
            case _:
                self.target.hook(*step)
        self.timing.done(entry)

    def _check_child(self, name: str) -> None:
        """What an executor has started ends with it (told only of an agent on this machine)."""
        puppet = self.puppets.latest(name)
        if puppet.hello["env"]["MESOS_AGENT_ENDPOINT"].startswith("127.") and is_alive(puppet.child):
            self.rows.fail(f"process {puppet.child}, a child of executor {name}, outlived it")

    def _executor_note(self, entry: Entry) -> None:
        body, text, name = entry.body, entry.text, entry.name
        if text == "executor process started":
            puppet = self.puppets.wait_new(name, self.script.patience_s + self.timing.since_before())
            if puppet is None:
                raise Lost(f"executor {name} was not started")
            self._compare_start(body, puppet.hello)
            return
        puppet = self.puppets.latest(name)
        if match := re.match(r"executor exits with status (\d+)", text):
            self.timing.pace(entry)
            puppet.tell("exit", code=int(match[1]))
        elif match := re.match(r"executor kills itself with signal (\d+)", text):
            self.timing.pace(entry)
            puppet.tell("signal", number=int(match[1]))
        elif text == "started a child process":
            puppet.child = puppet.ask("spawn")["pid"]
        elif text == "sandbox now":
            self._compare(puppet.ask("list"), {"files": body["files"]}, entry)
        elif text == "wrote":
            puppet.ask("write", path=body["path"], text=self.script.written[body["path"]])
        elif text.startswith("look at "):
            expected = {key: body[key] for key in ("is_symlink", "target", "files") if key in body}
            self._compare(puppet.ask("look", path=text.removeprefix("look at ")), expected, entry)
        elif text.startswith("MESOS_CHECKPOINT is not 1"):
            puppet.tell("exit", code=0)
        self.timing.done(entry)

    def _compare_start(self, recorded: Message, hello: Message) -> None:
        for key in ("cwd", "uid", "sandbox_files", "stdin", "stdout"):
            if key in recorded:
                self._report(self.bindings.differences(recorded[key], hello[key], (key,)))
        if "env" in recorded:
            own = {key: value for key, value in recorded["env"].items() if key not in _FOREIGN_VARIABLES}
            here = {key: value for key, value in hello["env"].items() if key not in _FOREIGN_VARIABLES}
            self._report(self._compare_environment(own, here))
        for key, value in recorded.get("env_trimmed", {}).items():
            wrong = self._compare_environment({key: value}, {key: hello["env"].get(key)})
            self._report(wrong)

    def _compare_environment(self, recorded: Message, here: Message) -> list[Difference]:
        addresses = ("MESOS_AGENT_ENDPOINT", "MESOS_SLAVE_PID", "LIBPROCESS_IP", "PATH")
        own = {key: here.get(key) if key in addresses else value for key, value in recorded.items()}
        return self.bindings.differences(own, here, ("env",))

    # Calls.

    def _call(self, entry: Entry) -> None:
        if entry.index in self._refused:
            self._check_refused(entry)
            return
        if self.script.asked_again.get(entry.index) != 307:  # else the moment of the election is waited for
            self.timing.pace(entry)
        body = self._body(entry) + self.script.endings.get(entry.index, "")
        exchange = self._send(entry, body)
        self._unanswered.setdefault(entry.key, []).append((entry, exchange))
        self.timing.done(entry)

    def _check_refused(self, entry: Entry) -> None:
        """Nobody listens any more where this call goes."""
        self.timing.pace(entry)
        address = self.target.address_of(entry, self.script)
        if not self.timing.wait(lambda: not is_listening(address)):
            self.rows.fail(f"line {entry.index + 1}: {address} still takes connections")
        self.timing.done(entry)

    def _body(self, entry: Entry) -> str:
        if isinstance(entry.body, dict) and "raw" in entry.body:
            return self.bindings.our_text(entry.body["raw"])
        body = self.bindings.ours(entry.body)
        if "x-www-form-urlencoded" in str(entry.http):
            return str(body["text"])
        if entry.index in self.script.all_offers:
            self._name_all_offers(entry, body)
        return "" if body is None else json.dumps(body)

    def _name_all_offers(self, entry: Entry, body: Message) -> None:
        """Let a call name also the offers that came and were not expected."""
        conversation = self._conversation(entry)
        with self.clock.changed:
            conversation.take()
            body[body["type"].lower()]["offer_ids"] += [
                arrived.event["id"] for arrived in conversation.offers
            ]
            conversation.offers.clear()

    def _send(self, entry: Entry, body: str) -> Exchange:
        http = entry.http
        default = "/api/v1/executor" if entry.side == "executor" else "/api/v1/scheduler"
        method, path = http.get("method", "POST"), http.get("path", default)
        given = http.get("headers", {})
        headers = given if "method" in http and given else _JSON_HEADERS | given
        if method == "GET" and not given:
            headers = {"Accept": "application/json"}
        headers = {name: self.bindings.our_text(_lengthen(value)) for name, value in headers.items()}
        if "method" not in http and entry.side == "scheduler" and "Mesos-Stream-Id" not in headers:
            headers["Mesos-Stream-Id"] = self._conversation(entry).exchange.headers["Mesos-Stream-Id"]
        headers |= self.script.more_headers.get(entry.index, {})
        data = body.encode()
        if entry.side == "executor":
            puppet = self.puppets.wait(entry.name, self.script.patience_s)
            if puppet is None:
                raise Lost(f"executor {entry.name} was not started")
            is_subscribe = entry.body.get("type") == "SUBSCRIBE"
            opened = puppet.open(self.script.patience_s if is_subscribe else 0)
            if opened is None:
                raise Lost(f"executor {entry.name} cannot connect to its agent")
            host = puppet.hello["env"]["MESOS_AGENT_ENDPOINT"]
        else:
            host = self.target.address_of(entry, self.script)
            opened = connect(host, CONNECT_TIMEOUT_S)
            if opened is None:
                raise Lost(f"nobody listens on {host}")
        request = request_bytes(method, path, host, headers, data)
        return Exchange(opened, self.clock, request, has_body=method != "HEAD")

    def _response(self, entry: Entry) -> None:
        calls = self._unanswered.get(entry.key)
        if not calls:
            return  # of several calls on one connection, which was not recorded as calls
        call, exchange = calls.pop(0)
        exchange = self._until_recovered(entry, call, exchange)
        if not self.timing.wait(lambda: exchange.is_answered):
            raise Lost(f"no answer to the call of line {call.index + 1}")
        self.timing.arrived(entry, time.monotonic())
        expected = entry.http
        if entry.index in self.script.unchecked and "Transfer-Encoding" not in exchange.headers:
            return
        if exchange.status != expected["status"]:
            self.rows.fail(
                f"line {entry.index + 1}: {exchange.status} {exchange.text} instead of {expected['status']}"
            )
        recorded = expected.get("headers", {})
        for name in _COMPARED_HEADERS:
            if "headers" not in expected:
                break
            self._compare(exchange.headers.get(name), recorded.get(name), entry, ("headers", name))
        if expected["status"] == 202:
            self._compare(exchange.headers.get("Content-Length"), "0", entry, ("headers", "Content-Length"))
        if exchange.headers.get("Transfer-Encoding") == "chunked":
            self._begin_stream(call, exchange)
        elif expected["status"] == exchange.status:
            self._compare_body(entry, exchange.text)

    def _until_recovered(self, entry: Entry, call: Entry, exchange: Exchange) -> Exchange:
        """Ask again, as each executor does, while an agent that was started again has not recovered; or as the script says."""
        deadline = time.monotonic() + self.script.patience_s
        is_subscribe = call.side == "executor" and _kind(call) == "SUBSCRIBE"
        again = (
            503 if is_subscribe and entry.http["status"] == 200 else self.script.asked_again.get(call.index)
        )
        while again and time.monotonic() < deadline:
            asked = exchange
            self.timing.wait(lambda: asked.is_answered)  # noqa: B023 - it is called before the next round
            if exchange.status != again:
                break
            time.sleep(RETRY_S)
            exchange = self._send(call, self._body(call))
        return exchange

    def _compare_body(self, entry: Entry, text: str) -> None:
        if isinstance(entry.body, dict) and entry.body.keys() == {"text"}:
            self._compare(text, entry.body["text"], entry)
        elif entry.body is None:
            self._compare(text, "", entry)
        elif not text.startswith(("{", "[")):
            self.rows.fail(f"line {entry.index + 1}: {text!r} is no JSON")
        else:
            self.bindings.may_have_more = entry.side == "operator"
            self._compare(json.loads(text), entry.body, entry)
            self.bindings.may_have_more = False

    def _begin_stream(self, call: Entry, exchange: Exchange) -> None:
        conversation = Conversation(exchange, self._strangers)
        self._all.append(conversation)
        place = (*call.key, call.which)
        if place in self.conversations:
            self.former[place] = self.conversations[place]
        self.conversations[place] = conversation

    # Events.

    def _conversation(self, entry: Entry) -> Conversation:
        places = self.former if entry.index in self.script.former else self.conversations
        found = places.get((*entry.key, entry.which))
        if found is None:
            raise Lost(f"{entry.name} has no stream")
        return found

    def _event(self, entry: Entry) -> None:
        conversation = self._conversation(entry)
        kind = entry.body["type"]
        if kind == "HEARTBEAT":
            if not self.timing.wait(lambda: self._peek(conversation, conversation.heartbeats)):
                raise Lost("no HEARTBEAT came")
            conversation.heartbeats.pop(0)
            return
        if kind == "OFFERS":
            self._offers(entry, conversation)
            return
        found: list[Arrived] = []

        def is_there() -> bool:
            conversation.take()
            found[:] = self._candidates(entry, conversation)
            return bool(found)

        if not self.timing.wait(is_there):
            raise Lost(f"{brief(entry.body)} did not come; {waiting(conversation)}")
        arrived = self._best(entry, found)
        self._check_order(entry, conversation, arrived)
        conversation.pending.remove(arrived)
        self.bindings.only_first_line = entry.index in self.script.first_line
        self._compare(arrived.event, entry.body, entry)
        self.bindings.only_first_line = False
        self._check_not_early(entry, arrived.at)
        self.timing.arrived(entry, arrived.at)

    def _candidates(self, entry: Entry, conversation: Conversation) -> list[Arrived]:
        wanted = kin(self.bindings.ours(entry.body))
        same = [arrived for arrived in conversation.pending if kin(arrived.event) == wanted]
        if not entry.body["type"].startswith("RESCIND"):
            return same[:1]
        chance = {one.event["id"]["value"] for one in conversation.offers}  # of an early tick, not recorded
        same = [
            one for one in same if one.event.get("rescind", {}).get("offer_id", {}).get("value") not in chance
        ]
        if entry.index in self.script.unchecked:
            return same
        return [one for one in same if not self.bindings.copy().differences(entry.body, one.event)]

    def _best(self, entry: Entry, found: list[Arrived]) -> Arrived:
        return min(found, key=lambda item: len(self.bindings.copy().differences(entry.body, item.event)))

    def _check_order(self, entry: Entry, conversation: Conversation, arrived: Arrived) -> None:
        """An event may overtake only what is independent of it: updates of other tasks, and rescinded offers."""
        kind = arrived.event["type"]
        for earlier in conversation.pending:
            if earlier is arrived:
                return
            other = earlier.event["type"]
            kinds = {kind, other}
            independent = kinds == {"UPDATE"} or "RESCIND" in str(kinds) or "OPERATION" in str(kinds)
            if not (
                independent
                or "MESSAGE" in kinds
                or "ACKNOWLEDGED" in kinds
                or entry.index in self.script.any_order
            ):
                self.rows.fail(
                    f"line {entry.index + 1}: {brief(earlier.event)} came before {brief(entry.body)}"
                )

    def _offers(self, entry: Entry, conversation: Conversation) -> None:
        """Each recorded offer must come; in which events, and in how many parts of one agent, the allocator's tick decides."""
        wanted = entry.body["offers"]["offers"]
        usual = self.bindings.free
        if entry.index in self.script.any_agent:
            self.bindings.free = usual | {"agent_id", "range", "attributes"}
        late = [float("inf")]
        pool: list[list[Arrived]] = []

        def fits() -> bool:
            conversation.take()
            alive = conversation.alive()
            for offers in (conversation.offers, alive):
                for pool[:] in ([[offer] for offer in offers], list(by_agent(offers))):
                    enough = len(pool) >= len(wanted)
                    if enough and not self.bindings.copy().assign(wanted, merge(pool), _OFFERS)[0]:
                        return True
            if len(alive) >= len(wanted):
                late[0] = min(late[0], time.monotonic() + AFTER_OFFERS_TICKS / self.scale + LATE_S)
            return time.monotonic() > late[0]

        if not self.timing.wait(fits):
            conversation.take()
            came = [summary(arrived.event) for arrived in conversation.offers]
            raise Lost(f"of the offers {[summary(offer) for offer in wanted]} only {came} came")
        differences, places = self.bindings.assign(wanted, merge(pool), _OFFERS)
        self.bindings.free = usual
        self._report(differences, entry)
        taken = [arrived for place in places for arrived in pool[place]]
        for offer, place in zip(wanted, places, strict=False):
            ids = [arrived.event["id"]["value"] for arrived in pool[place]]
            if len(ids) > 1:
                self.bindings.merged[offer["id"]["value"]] = ids
        conversation.offers = [item for item in conversation.offers if item not in taken]
        at = max(item.at for item in taken)
        self._check_not_early(entry, at)
        self.timing.arrived(entry, at)

    def _eof(self, entry: Entry) -> None:
        how = entry.body["how"]
        if entry.who in ("scheduler", "executor"):
            self.timing.pace(entry)
            self._conversation(entry).exchange.close(reset=entry.index in self.script.resets)
            self.timing.done(entry)
            return
        if how.startswith("RemoteDisconnected"):  # of a call, not of a stream
            _, exchange = self._unanswered[entry.key].pop(0)
            if not self.timing.wait(lambda: bool(exchange.ended)) or exchange.status:
                self.rows.fail(f"line {entry.index + 1}: the connection was not closed without an answer")
            return
        if not how.startswith((FINAL_CHUNK, FIN)):
            return  # what the recorder's own end of a connection looked like to itself
        exchange = self._conversation(entry).exchange
        if not self.timing.wait(lambda: bool(exchange.ended)):
            raise Lost(f"the stream of {entry.name} did not end")
        wanted = FINAL_CHUNK if how.startswith(FINAL_CHUNK) else FIN
        self._compare(exchange.ended, wanted, entry)
        self.timing.arrived(entry, time.monotonic())

    # Comparing.

    def _compare(self, actual: Any, expected: Any, entry: Entry, path: tuple[str, ...] = ()) -> None:
        self._report(self.bindings.differences(expected, actual, path), entry)

    def _report(self, differences: Iterable[Difference], entry: Entry | None = None) -> None:
        if entry is not None and entry.index in self.script.unchecked:
            return
        line = self.clock.line + 1 if entry is None else entry.index + 1
        for difference in differences:
            self.rows.fail(f"line {line}: {difference}")

    @staticmethod
    def _peek(conversation: Conversation, wanted: list[Arrived]) -> bool:
        conversation.take()
        return bool(wanted)

    def _check_measured(self, entry: Entry) -> None:
        if entry.index in self.script.unchecked:
            return
        if off := self.timing.measured(entry, by_own_clock=entry.index in self.script.by_own_clock):
            self.rows.fail(f"line {entry.index + 1}: {off}")

    def _check_not_early(self, entry: Entry, at: float) -> None:
        if early := self.timing.early(entry, at):
            self.rows.fail(f"line {entry.index + 1}: {brief(entry.body)} {early}")

    # The end.

    def _check_nothing_is_left(self) -> None:
        now = time.monotonic()
        for conversation in self._all:
            with self.clock.changed:
                conversation.take()
            self._excuse_rescinded(conversation)
            for arrived in conversation.pending:
                self.rows.fail_at(
                    arrived.line, f"{brief(arrived.event)} came, and never did in the recording"
                )
            recent = (conversation.exchange.ended_at or now) - 1.5 * TICK_S / self.scale - LATE_S
            for arrived in conversation.offers:
                if arrived.at < recent and arrived.line not in self.script.unchecked:
                    self.rows.fail_at(
                        arrived.line, f"{summary(arrived.event)} was offered, and never in the recording"
                    )
            self._check_heartbeats(conversation.heartbeat_times)

    def _excuse_rescinded(self, conversation: Conversation) -> None:
        """Drop offers that were rescinded, if both are left over: an early tick made them, as a part or as one more."""
        parts = {one for ids in self.bindings.merged.values() for one in ids}
        parts |= {arrived.event["id"]["value"] for arrived in conversation.offers}
        gone = {
            arrived.event["rescind"]["offer_id"]["value"]
            for arrived in conversation.pending
            if arrived.event["type"] == "RESCIND"
        } & parts
        conversation.offers = [one for one in conversation.offers if one.event["id"]["value"] not in gone]
        conversation.pending = [
            one
            for one in conversation.pending
            if one.event["type"] != "RESCIND" or one.event["rescind"]["offer_id"]["value"] not in gone
        ]

    def _check_heartbeats(self, times: list[float]) -> None:
        """One at once, then one every 15 s."""
        for number, (one, other) in enumerate(zip(times, times[1:], strict=False)):
            gap, wanted = other - one, self.script.heartbeat_s / self.scale
            if not 0.7 * wanted - 0.1 <= gap <= 1.3 * wanted + 1.0:
                self.rows.fail_at(
                    0, f"heartbeat {number + 1} came {gap:.2f} s after the one before, not {wanted:.2f} s"
                )

    def _leave(self) -> None:
        """Remove what the scenario leaves in the master, and close all connections."""
        for conversation in self._all:
            conversation.exchange.close()
        for calls in self._unanswered.values():
            for _, exchange in calls:
                exchange.close()
        for recorded, running in self.bindings.ids.items():
            if re.fullmatch(r".{36}-\d{4}", recorded):
                with contextlib.suppress(OSError):
                    self.target.tear_down(running)
        self.puppets.forget()
        self.target.restore()


def _kind(call: Entry) -> str:
    return str(call.body.get("type", "")) if isinstance(call.body, dict) else ""


def _lengthen(text: str) -> str:
    """Undo what the recorder did to long headers: "yyyy... (100 bytes)"."""
    match = _SHORTENED.fullmatch(text)
    return match[1] * int(match[2]) if match else text


def _title(entry: Entry, script: Script) -> str:
    """Return the name of the row that begins with this line, or nothing."""
    if entry.index in script.titles:
        return script.titles[entry.index]
    if (
        entry.kind == "note"
        and entry.who == "operator"
        and not entry.body.get("rule")
        and "raw" not in entry.body
    ):
        return entry.text
    return entry.why if entry.kind == "call" else ""
