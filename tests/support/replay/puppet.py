"""The executor of the recordings, played by the test: a process on the agent that does what it is told over a connection.

It imports nothing but the standard library and travels inside the CommandInfo (`command`), so that it runs on any agent that has
a Python 3. Its conversation with the agent goes over connections of its own, which break when it dies; their bytes are passed on
to the test, which plays the recorded calls.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from typing import Any


def main() -> None:
    control = connect(sys.argv[1])
    name = os.environ["MESOS_EXECUTOR_ID"]
    with contextlib.suppress(OSError):
        say(control, {"kind": "control", "name": name, **describe()})
        for line in control.makefile():
            order = json.loads(line)
            say(control, {"id": order["id"], **obey(order)})
    os._exit(1)


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    opened = socket.create_connection((host, int(port)))
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def say(opened: socket.socket, value: dict[str, Any]) -> None:
    opened.sendall(json.dumps(value).encode() + b"\n")


def describe() -> dict[str, Any]:
    return {
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "uid": os.getuid(),
        "pid": os.getpid(),
        "sandbox_files": sorted(os.listdir(".")),
        "stdin": os.readlink("/proc/self/fd/0"),
        "stdout": os.readlink("/proc/self/fd/1"),
    }


def obey(order: dict[str, Any]) -> dict[str, Any]:
    do = order["do"]
    if do == "open":
        return pass_on(order["token"])
    if do == "exit":
        os._exit(order["code"])
    if do == "signal":
        os.kill(os.getpid(), order["number"])
    if do == "list":
        return {"files": sorted(os.listdir("."))}
    if do == "write":
        with open(order["path"], "w") as file:
            file.write(order["text"])
    if do == "look":
        return look(order["path"])
    if do == "spawn":
        return {"pid": subprocess.Popen(["sleep", "300"]).pid}
    if do == "is-alive":
        return {"alive": os.path.exists(f"/proc/{order['pid']}")}
    if do == "stop":
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    return {}


def look(path: str) -> dict[str, Any]:
    files = {}
    for name in sorted(os.listdir(path)):
        with open(os.path.join(path, name)) as file:
            files[name] = file.read()
    is_symlink = os.path.islink(path.rstrip("/"))
    target = {"target": os.path.realpath(path)} if is_symlink else {}
    return {"is_symlink": is_symlink, **target, "files": files}


def pass_on(token: str) -> dict[str, Any]:
    """Connect to the agent, and pass the bytes of that connection to a new one to the test."""
    try:
        agent = connect(os.environ["MESOS_AGENT_ENDPOINT"])
    except OSError as error:
        return {"error": str(error)}
    test = connect(sys.argv[1])
    say(test, {"kind": "connection", "token": token})
    for one, other in ((agent, test), (test, agent)):
        threading.Thread(target=pump, args=(one, other), daemon=True).start()
    return {}


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for opened in (source, sink):
            with contextlib.suppress(OSError):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                opened.shutdown(socket.SHUT_RDWR)


def command(python: str, control: str) -> str:
    """Return the shell command that becomes this executor; `control` is the HOST:PORT at which the test waits for it."""
    text = inspect.getsource(sys.modules[__name__])
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    program = f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{packed}')))"
    return f'exec {python} -c "{program}" {control}'


if __name__ == "__main__":
    main()
