"""A reader process: reads files at random by descriptor where it can, else by socket, and returns what is asked back.

`block_reader.py ROOT SOCKET LAUNCH INCARNATION SEED COUNT`; prints how much it read, exits 1 at the first wrong byte.
"""

from __future__ import annotations

import os
import random
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from stoker.executor.wire import DescriptorStatus, Hello, Op  # noqa: E402
from support.executors import CLUSTER, TestDataset, WireClient  # noqa: E402

HELD_MAX = 4


def main(root: str, path: str, launch: str, incarnation: str, seed: str, count: str) -> int:
    dataset = TestDataset(root)
    chance = random.Random(int(seed))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    client = WireClient(sock, Hello(CLUSTER, int(launch), int(incarnation), 1, 1, 1))
    held: dict[int, int] = {}
    dropped = by_descriptor = done = 0

    def take_drops() -> None:
        nonlocal dropped
        for block in client.drops:
            if block in held:
                os.close(held.pop(block))
                client.give_back(block)
                dropped += 1
        client.drops.clear()

    while done < int(count):
        row = chance.choice(dataset.rows)
        if not row.size:
            continue
        expected = dataset.data(row.path)
        start = chance.randrange(row.size)
        stop = chance.randrange(start, row.size) + 1
        parts: list[bytes] = []
        for place, (block, offset, length) in enumerate(dataset.ranges(row.path, start, stop)):
            if block not in held:
                parts.append(client.read((block, offset, length)))
                if len(held) == HELD_MAX:
                    oldest = next(iter(held))
                    os.close(held.pop(oldest))
                    client.give_back(oldest)
                statuses, fds = client.descriptors(block)
                if statuses == [DescriptorStatus.PASSED]:
                    held[block] = fds[0]
            if block in held:
                data = os.pread(held[block], length, offset)
                by_descriptor += 1
                parts[place:] = [data]
            take_drops()
        if b"".join(parts) != expected[start:stop]:
            print(f"wrong bytes in {row.path} [{start}, {stop})")
            return 1
        done += 1
        client.request(Op.PING, [])
        take_drops()
    print(f"read {done} by descriptor {by_descriptor} dropped {dropped}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
