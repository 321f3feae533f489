"""The data server: a process that looks up blocks and sends them. `python -m stoker.executor.server FD`, by the keeper.

It imports no under store and no Mesos driver, and is not monkey-patched: gevent's own calls only, and nothing here takes
long (a pure-Python loop of another thread would cost it nine tenths of its rate, measured). What it knows comes from the
keeper, over the channel FD:

    start     {cluster, launch, incarnation, host, port, path, abstract, parent, limits?, disk?, disk_files?, awaited?}   once,
              first; answered by listening {port} or failed {message}; disk: where the files of the SSD tier are, disk_files: how
              many of them may be open at once; awaited: [[id, generation]..] of which it found blocks
    dataset   {id, generation, version, block_bytes, placement}
    dataset_gone {id, generation}          answered by cleared {id, generation}, when no caller can read it any more
    slots     {placement_version, slots}                                             for REFRESH, with a dataset's placement
    block     {holding, dataset, generation, index, data_bytes, full_from, file} + fd   a holding is here; of the SSD tier
              its file's name and no descriptor
    restored  {dataset, generation, blocks: [[holding, index, data_bytes, full_from, file]..]}   many that a restart found
    full      {holding, full_from}                                                   it is sealed, full from that version on
    drop      {holding}                                     answered by gone {holding}, when nobody uses it any more
    known, have                                                                      see stoker.executor.misses
    ping                                                                             answered by pong

and it says besides want, unwant, corrupt, broken {holding, text} (its file cannot be read): used {holdings: [[holding, uses]..], served: [[id, generation, bytes]..], lent: [holding..]},
about once a second. The channel's end of file is the keeper's end, and this process'.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from typing import Any

import gevent
import gevent.socket
from gevent.server import StreamServer

from stoker.executor.block import BlockName
from stoker.executor.channel import Channel
from stoker.executor.connection import Connection
from stoker.executor.disk_calls import DiskCalls
from stoker.executor.entries import DISK_READS_MAX, DiskFiles
from stoker.executor.loans import Shelf
from stoker.executor.misses import Misses
from stoker.executor.outbox import Outbox
from stoker.executor.process import die_with_parent, raise_descriptor_limit, start_logging
from stoker.executor.server_state import Identity, Limits, ServerState
from stoker.executor.sockets import listen_abstract, listen_path, listen_tcp
from stoker.executor.stream import Stream
from stoker.executor.wire import HelloAnswer, HelloStatus, encode_hello_answer

log = logging.getLogger(__name__)

REFUSALS_MAX = 64  # callers that are being told BUSY; beyond that they are only closed
REPORT_INTERVAL_MS = 1_000


class Server:
    """The data server behind one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._outbox = Outbox(channel, self._lost)
        self._shelf = Shelf(lambda holding: self._outbox.put({"t": "gone", "holding": holding}))
        self._misses = Misses(self._shelf, self._outbox.put)
        self._limits = Limits()
        self._connections = 0
        self._refusals = 0
        self._state: ServerState | None = None
        self._path = ""

    def run(self) -> int:
        """Serve until the keeper is gone; return the exit code."""
        first = self._channel.receive()
        if first is None:
            return 0
        message, fds = first
        assert message["t"] == "start" and not fds, message
        die_with_parent(message.get("parent", 0))
        if not self._start(message):
            return 1
        gevent.spawn(self._report)
        try:
            while (received := self._channel.receive()) is not None:
                self._handle(*received)
        finally:
            if self._path:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
        return 0

    def _start(self, message: dict[str, Any]) -> bool:
        identity = Identity(message["cluster"], message["launch"], message["incarnation"])
        if message.get("disk"):
            self._shelf.files = DiskFiles(
                message["disk"],
                message["cluster"],
                self._broken,
                DiskCalls(DISK_READS_MAX),
                open_max=message["disk_files"],
            )
        self._shelf.await_datasets((key[0], key[1]) for key in message.get("awaited", ()))
        self._limits = Limits(**message.get("limits", {}))
        self._state = ServerState(identity, self._limits, self._shelf, self._misses)
        try:
            listeners = [listen_tcp(message["host"], message["port"])]
            if message["abstract"]:
                listeners.append(listen_abstract(message["abstract"]))
            if message["path"]:
                listeners.append(listen_path(message["path"]))
                self._path = message["path"]
        except OSError as error:
            self._channel.send({"t": "failed", "message": str(error)})
            return False
        port = listeners[0].getsockname()[1]
        for listener in listeners:
            StreamServer(gevent.socket.socket(fileno=listener.detach()), self._accept).start()
        self._outbox.put({"t": "listening", "port": port})
        return True

    def _handle(self, message: dict[str, Any], fds: list[int]) -> None:
        kind = message["t"]
        shelf = self._shelf
        if kind == "have":
            self._misses.take_have(message, fds)
        elif kind == "known":
            self._misses.take_known(message)
        elif kind == "block":
            dataset = shelf.datasets[message["dataset"], message["generation"]]
            name = BlockName(message["dataset"], message["generation"], message["index"])
            if message.get("file"):
                entry = shelf.put_file(
                    dataset, message["holding"], name, message["file"], message["data_bytes"]
                )
            else:
                entry = shelf.put(dataset, message["holding"], name, fds[0], message["data_bytes"])
            entry.full_from = message["full_from"]
        elif kind == "restored":
            self._restored(message)
        elif kind == "full":
            entry = shelf.holdings[message["holding"]]
            entry.full_from = message["full_from"]
            entry.sealed = True
        elif kind == "drop":
            shelf.take_off(message["holding"])
        elif kind == "dataset":
            dataset = shelf.put_dataset(
                message["id"], message["generation"], message["version"], message["block_bytes"]
            )
            dataset.placement = message["placement"]
        elif kind == "dataset_gone":
            told = {"t": "cleared", "id": message["id"], "generation": message["generation"]}
            shelf.remove_dataset(message["id"], message["generation"], lambda: self._outbox.put(told))
        elif kind == "ping":
            self._outbox.put({"t": "pong"})
        elif kind == "slots":
            assert self._state is not None
            self._state.placement_version = message["placement_version"]
            self._state.slots = message["slots"]
        else:
            raise AssertionError(f"the keeper said {kind!r}, which this server does not know")

    def _restored(self, message: dict[str, Any]) -> None:
        shelf = self._shelf
        dataset = shelf.datasets[message["dataset"], message["generation"]]
        for holding, index, data_bytes, full_from, file in message["blocks"]:
            name = BlockName(message["dataset"], message["generation"], index)
            entry = shelf.put_file(dataset, holding, name, file, data_bytes, is_restored=full_from > 0)
            entry.full_from = full_from
            entry.sealed = full_from > 0

    def _broken(self, holding: int, text: str) -> None:
        self._outbox.put({"t": "broken", "holding": holding, "text": text})

    def _accept(self, accepted: gevent.socket.socket, _address: Any) -> None:
        stream = Stream(
            socket.socket(fileno=accepted.detach()), stall_timeout_ms=self._limits.stall_timeout_ms
        )
        if self._connections >= self._limits.connections_max:
            self._refuse(stream)
            return
        assert self._state is not None
        self._connections += 1
        try:
            Connection(stream, self._state).serve()
        finally:
            self._connections -= 1

    def _refuse(self, stream: Stream) -> None:
        """Say BUSY, before the hello is read, if not too many are being told so."""
        assert self._state is not None
        mine = self._state.identity
        if self._refusals < REFUSALS_MAX:
            self._refusals += 1
            try:
                detail = f"{self._limits.connections_max} connections are open here already"
                stream.send(encode_hello_answer(HelloAnswer(HelloStatus.BUSY, 1, *mine, 0, 0, detail)))
                stream.finish()
            except OSError as error:
                log.debug("a caller left before it was told BUSY: %s", error)
            finally:
                self._refusals -= 1
        stream.close()

    def _report(self) -> None:
        lent_before: list[int] = []
        while True:
            gevent.sleep(REPORT_INTERVAL_MS / 1000)
            used = self._shelf.take_uses()
            served = []
            for dataset in self._shelf.datasets.values():
                if dataset.served_bytes:
                    served.append([dataset.dataset_id, dataset.generation, dataset.served_bytes])
                    dataset.served_bytes = 0
            lent = self._shelf.lent()
            if used or served or lent != lent_before:
                self._outbox.put({"t": "used", "holdings": used, "served": served, "lent": lent})
                lent_before = lent

    def _lost(self, error: Exception) -> None:
        log.info("the keeper is gone: %s", error)
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        os._exit(0)


def main(argv: list[str]) -> int:
    start_logging("server")
    raise_descriptor_limit()
    if len(argv) != 2 or not argv[1].isdigit():
        print("stoker.executor.server is started by the keeper (python -m stoker.executor)", file=sys.stderr)
        return 2
    os.set_inheritable(int(argv[1]), False)
    channel = Channel(gevent.socket.socket(fileno=int(argv[1])))
    return Server(channel).run()


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stderr.flush()
    os._exit(code)  # greenlets of connections may still wait for their callers
