"""10,000 offers in one event: from its first byte to the last offer's answer, and how long the hub was held.

The scheduler is a real process behind a scripted master, its journal a local file. Once every offer is declined with its
reason (the wanted fleet does not fit anywhere), once the first of them launch executors. The hub's longest hold is the
longest answer of GET /alive meanwhile, asked without a pause. Peer: pymesos' driver, from the event's first byte to its
callback: it then has the offers as dictionaries, and has decided nothing.
"""

from __future__ import annotations

import http.client
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import zookeeper  # puts tests/ on the path
from common import Result

from stoker.mesos.recordio import encode_record
from support.fake_mesos import FakeMesos, Stream, subscribed
from support.schedulers import SchedulerProcess, scheduler_process

assert zookeeper, "imported for the path"

OFFERS = 10_000
ROUNDS = 5
TIMEOUT_S = 120
MEM_BYTES = 2**30
TOO_MUCH_BYTES = 2**40
INSTANCES = 256  # of one frame

PEER = """
import signal, sys, pymesos
class Taker(pymesos.Scheduler):
    def resourceOffers(self, driver, offers):
        print(len(offers), flush=True)
driver = pymesos.MesosSchedulerDriver(Taker(), {"user": "u", "name": "n"}, sys.argv[1], use_addict=False)
driver.start()
signal.pause()
"""


def run() -> list[Result]:
    theirs = statistics.median(_peer_rounds())
    results = []
    for what, instances, mem_bytes in (
        ("declined, each for its reason", 1, TOO_MUCH_BYTES),
        (f"{INSTANCES} launched, the others declined", INSTANCES, MEM_BYTES),
    ):
        took, held = zip(*_rounds(instances, mem_bytes), strict=True)
        name = f"{OFFERS:,} offers {what}"
        results.append(_result(name, "pymesos until its callback", took, theirs, "< 1 s"))
        results.append(
            _result(f"... the hub's longest hold of {ROUNDS}", "the bar", (max(held),), 0.25, "< 0.25 s")
        )
    return results


def _result(what: str, peer: str, ours: tuple[float, ...], theirs: float, bar: str) -> Result:
    middle = statistics.median(ours)
    return Result(
        what, peer, middle, theirs, "s", theirs / middle, theirs / max(ours), theirs / min(ours), bar
    )


def _rounds(instances: int, mem_bytes: int) -> Iterator[tuple[float, float]]:
    """Yield (seconds until all are answered, longest answer of /alive meanwhile), a fresh scheduler each."""
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="stoker-bench-offers-") as directory, FakeMesos() as master:
            root = pathlib.Path(directory)
            config = {
                "master": master.address,
                "journal": f"file:{root / 'journal'}",
                "new_cluster": True,
                "log_level": "error",
                "instances": instances,
                "mem_bytes": mem_bytes,
            }
            with scheduler_process(config, root / "log") as process:
                stream = master.wait_stream(deadline_s=TIMEOUT_S)
                stream.send(subscribed())
                process.wait_leading()
                yield _measure(master, stream, process)


def _measure(master: FakeMesos, stream: Stream, process: SchedulerProcess) -> tuple[float, float]:
    event = encode_record(json.dumps(_event()).encode())
    with _Asking(process) as asking:
        began_s = time.perf_counter()
        stream.send_bytes(event)
        deadline_s = began_s + TIMEOUT_S
        seen, answered = 0, 0
        while answered < OFFERS:
            calls = list(master.calls)
            answered += sum(
                _answers(call.body) for call in calls[seen:] if call.type in ("ACCEPT", "DECLINE")
            )
            seen = len(calls)
            if time.perf_counter() > deadline_s:
                raise SystemExit(f"{answered} of {OFFERS} offers answered: {process.said()[-2000:]}")
            time.sleep(0.002)
        took_s = time.perf_counter() - began_s
    return took_s, asking.longest_s


def _answers(body: dict[str, Any]) -> int:
    return len(body[body["type"].lower()]["offer_ids"])


class _Asking:
    """Asks /alive without a pause, in a thread."""

    def __init__(self, process: SchedulerProcess) -> None:
        self._connection = http.client.HTTPConnection(process.api.host, process.api.port, timeout=TIMEOUT_S)
        self._ask()
        self.longest_s = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, daemon=True)

    def __enter__(self) -> _Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._connection.close()

    def _ask_on(self) -> None:
        while not self._is_over.is_set():
            began_s = time.perf_counter()
            self._ask()
            self.longest_s = max(self.longest_s, time.perf_counter() - began_s)
            time.sleep(0.001)

    def _ask(self) -> None:
        self._connection.request("GET", "/alive")
        self._connection.getresponse().read()


def _peer_rounds() -> Iterator[float]:
    event = encode_record(json.dumps(_event()).encode())
    for _ in range(ROUNDS):
        with FakeMesos() as master:
            command = [sys.executable, "-c", PEER, master.address]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            try:
                stream = master.wait_stream(deadline_s=TIMEOUT_S)
                stream.send(subscribed())
                yield _timed(lambda sent=stream: sent.send_bytes(event), child)
            finally:
                child.kill()
                child.wait()


def _timed(send: Callable[[], object], child: subprocess.Popen[str]) -> float:
    assert child.stdout is not None
    began_s = time.perf_counter()
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    line = child.stdout.readline()
    took_s = time.perf_counter() - began_s
    if line.strip() != str(OFFERS):
        raise SystemExit(f"pymesos gave {line!r}")
    sender.join()
    return took_s


def _event() -> dict[str, Any]:
    return {"type": "OFFERS", "offers": {"offers": [offer(i) for i in range(OFFERS)]}}


def offer(i: int) -> dict[str, Any]:
    """Return an offer of a real cluster's size: a reservation, attributes, a fault domain."""
    role = {"allocation_info": {"role": "*"}}
    return {
        "id": {"value": f"5c4d7a0e-8a6f-4b1e-9a55-0a4a5e2f7b11-O{i}"},
        "framework_id": {"value": "5c4d7a0e-8a6f-4b1e-9a55-0a4a5e2f7b11-0000"},
        "agent_id": {"value": f"5c4d7a0e-8a6f-4b1e-9a55-0a4a5e2f7b11-S{i}"},
        "hostname": f"agent-{i}.example",
        "url": {
            "scheme": "http",
            "address": {"hostname": f"agent-{i}.example", "ip": "10.0.0.1", "port": 5051},
        },
        "domain": {"fault_domain": {"region": {"name": "r"}, "zone": {"name": f"z{i % 3}"}}},
        "allocation_info": {"role": "*"},
        "attributes": [{"name": "rack", "type": "TEXT", "text": {"value": f"r{i % 200}"}}],
        "resources": [
            {
                "name": "ports",
                "type": "RANGES",
                "ranges": {"range": [{"begin": 31000, "end": 32000}]},
                **role,
            },
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": 32.0}, **role},
            {"name": "mem", "type": "SCALAR", "scalar": {"value": 131072.0}, **role},
            {"name": "disk", "type": "SCALAR", "scalar": {"value": 1048576.0}, **role},
            {
                "name": "disk",
                "type": "SCALAR",
                "scalar": {"value": 1024.0},
                "disk": {"persistence": {"id": f"v{i}"}, "volume": {"container_path": "d", "mode": "RW"}},
                "reservations": [
                    {"type": "DYNAMIC", "role": "*", "labels": {"labels": [{"key": "of", "value": "others"}]}}
                ],
                **role,
            },
        ],
    }
