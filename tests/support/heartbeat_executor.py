"""An executor that holds nothing: Mesos' executor API and heartbeats, for tests of the scheduler alone."""

from __future__ import annotations

import http.client
import os
import threading
import time

from embedded_executor import Executor

from stoker.executor.messages import Heartbeat, decode_answer, encode

INTERVAL_S = 0.2
INCARNATION = int.from_bytes(os.urandom(7)) | 1


def beat_forever() -> None:
    urls = os.environ["STOKER_SCHEDULERS"].split(",")
    sequence = epoch = version = 0
    whole = True
    while True:
        sequence += 1
        heartbeat = Heartbeat(
            cluster=bytes.fromhex(os.environ["STOKER_CLUSTER"]),
            slot_id=int(os.environ["STOKER_SLOT"]),
            launch_id=int(os.environ["STOKER_LAUNCH"]),
            incarnation=INCARNATION,
            secret=os.environ["STOKER_SECRET"],
            sequence=sequence,
            whole=whole,
            epoch_seen=epoch,
            assignment_version=version,
            host=os.environ["STOKER_HOST"],
            port=int(os.environ["STOKER_PORT"]),
            socket_path="",
            abstract_socket="",
            boot_id="test",
            pid=os.getpid(),
            capacity_bytes=int(os.environ["STOKER_MEM_BYTES"]),
            used_bytes=0,
            lent_bytes=0,
        )
        try:
            connection = http.client.HTTPConnection(urls[0].removeprefix("http://"), timeout=2)
            connection.request("POST", "/v1/executors/heartbeat", encode(heartbeat))
            response = connection.getresponse()
            data = response.read()
            connection.close()
        except OSError:
            response = None
        if response is not None and response.status == 200:
            answer = decode_answer(data)
            if answer.status == "stale":
                os._exit(3)
            whole = answer.want_whole
            if answer.assignment is not None:
                epoch, version = answer.assignment.epoch, answer.assignment.version
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    threading.Thread(target=beat_forever, daemon=True).start()
    Executor().run()
