"""A reader process: reads files at random by descriptor where it can, else by socket, and returns what is asked back.

`block_reader.py ROOT SOCKET LAUNCH INCARNATION SEED COUNT DIRECTORY` reads COUNT files, and on until DIRECTORY has a file
`stop`. It makes DIRECTORY/dropped-SEED when a block was asked back for the first time, prints how much it read, and exits 1 at the
first wrong byte.
"""

from __future__ import annotations

import os
import random
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from stoker.executor.wire import DescriptorStatus, Hello, Op  # noqa: E402
from support.data_servers import CLUSTER, WireClient  # noqa: E402
from support.executors import TestDataset  # noqa: E402

HELD_MAX = 8  # so that a few readers hold all that a small tier has


class Reader:
    """One connection and the descriptors that it holds."""

    def __init__(self, dataset: TestDataset, client: WireClient) -> None:
        self.dataset = dataset
        self.client = client
        self.held: dict[int, int] = {}
        self.dropped = self.by_descriptor = 0

    def take_drops(self) -> None:
        """Return what was asked back."""
        for block in self.client.drops:
            if block in self.held:
                self._return(block)
                self.dropped += 1
        self.client.drops.clear()

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Return a file's bytes; a block that was read through the socket is borrowed for the next time."""
        parts = []
        for block, offset, length in self.dataset.ranges(path, start, stop):
            if block in self.held:
                parts.append(os.pread(self.held[block], length, offset))
                self.by_descriptor += 1
            else:
                parts.append(self.client.read((block, offset, length)))
                self._borrow(block)
                if block in self.held:
                    assert os.pread(self.held[block], length, offset) == parts[-1]
            self.take_drops()
        return b"".join(parts)

    def _borrow(self, block: int) -> None:
        if len(self.held) == HELD_MAX:
            self._return(next(iter(self.held)))
        statuses, fds = self.client.descriptors(block)
        if statuses == [DescriptorStatus.PASSED]:
            self.held[block] = fds[0]

    def _return(self, block: int) -> None:
        os.close(self.held.pop(block))
        self.client.give_back(block)


def main(root: str, path: str, launch: str, incarnation: str, seed: str, count: str, directory: str) -> int:
    dataset = TestDataset(root)
    chance = random.Random(int(seed))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    reader = Reader(dataset, WireClient(sock, Hello(CLUSTER, int(launch), int(incarnation), 1, 1, 1)))
    done = 0
    while done < int(count) or not os.path.exists(f"{directory}/stop"):
        row = chance.choice([row for row in dataset.rows if row.size])
        start = chance.randrange(row.size)
        stop = chance.randrange(start, row.size) + 1
        if reader.read(row.path, start, stop) != dataset.data(row.path)[start:stop]:
            print(f"wrong bytes in {row.path} [{start}, {stop})")
            return 1
        done += 1
        reader.client.request(Op.PING, [])
        reader.take_drops()
        if reader.dropped:
            open(f"{directory}/dropped-{seed}", "w").close()
    print(f"read {done} by descriptor {reader.by_descriptor} dropped {reader.dropped}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
