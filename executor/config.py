"""The keeper's configuration, from its environment. Nobody else of this package reads `os.environ` for it.

All faults are found at once, before any socket or process is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from stoker.executor.errors import ConfigError
from stoker.executor.sockets import SOCKET_PATH_BYTES_MAX, SUFFIX, socket_directory, socket_name

FILLERS_MAX = 64
SCHEDULERS_MAX = 64

HELP = """\
python -m stoker.executor: the cache process of one Mesos agent (keeper, data server and fillers).

A Stoker scheduler has Mesos start it; it is not started by hand. It takes no arguments and reads its environment:

  STOKER_SCHEDULERS   where schedulers answer: http://host:port, comma separated
  STOKER_CLUSTER      the cluster's uuid, 32 hex digits
  STOKER_SLOT         the slot that this executor is for, a number from 1
  STOKER_LAUNCH       the launch that this start is, a number from 1
  STOKER_TASK         the Mesos task id of that launch
  STOKER_SECRET       what tells the scheduler that it is really this launch
  STOKER_EPOCH        the epoch of the leader that launched it; lower ones are refused
  STOKER_MEM_BYTES    the MEM tier, in bytes; never more than Mesos and the machine give is used
  STOKER_DISK_BYTES   the SSD tier, in bytes, its index included (default 0: none); never more than there is room for
  STOKER_DISK_DIR     its directory, best on a persistent volume (default ssd; a relative one is in the sandbox)
  STOKER_HOST         the address to serve on, and to tell others
  STOKER_PORT         the port to serve on
  STOKER_SOCKET_DIR   directory of the Unix socket (default /tmp/stoker-<uid>); short: a socket's path has at most 107 bytes
  STOKER_FILLERS      processes that read under stores (default 2, or 1 on a machine of one core)
  STOKER_LOG_LEVEL    DEBUG, INFO (default), WARNING or ERROR

and what the Mesos agent sets (MESOS_AGENT_ENDPOINT, MESOS_FRAMEWORK_ID, MESOS_EXECUTOR_ID, ...).

Exit codes: 0 ended as told, 1 failed, 2 the environment is wrong.
"""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class KeeperConfig:
    """What a keeper is told at its start; `socket_path` and `abstract_socket` are derived."""

    schedulers: tuple[str, ...]
    cluster: bytes
    slot_id: int
    launch_id: int
    task_id: str
    secret: str
    epoch: int
    mem_bytes: int
    host: str
    port: int
    socket_dir: str
    filler_count: int
    sandbox: str
    disk_bytes: int = 0
    disk_dir: str = ""

    @property
    def socket_path(self) -> str:
        return os.path.join(self.socket_dir, socket_name(self.cluster, self.slot_id, self.launch_id) + SUFFIX)

    @property
    def abstract_socket(self) -> str:
        return socket_name(self.cluster, self.slot_id, self.launch_id)


def load(environ: Mapping[str, str]) -> KeeperConfig:
    """Read the environment.

    :raises ConfigError: it is wrong; the text names every variable that is, and what is allowed.
    """
    faults: list[str] = []

    def read(name: str, parse: Callable[[str], _T], default: str | None = None) -> _T | None:
        text = environ.get(name) or default
        if text is None:
            faults.append(f"{name} is not set")
            return None
        try:
            return parse(text)
        except ValueError as error:
            faults.append(f"{name}={text!r}: {error}")
            return None

    cores = os.cpu_count() or 1
    values = {
        "schedulers": read("STOKER_SCHEDULERS", parse_schedulers),
        "cluster": read("STOKER_CLUSTER", _parse_cluster),
        "slot_id": read("STOKER_SLOT", _number(1)),
        "launch_id": read("STOKER_LAUNCH", _number(1)),
        "task_id": read("STOKER_TASK", str),
        "secret": read("STOKER_SECRET", str),
        "epoch": read("STOKER_EPOCH", _number(0)),
        "mem_bytes": read("STOKER_MEM_BYTES", _number(1)),
        "host": read("STOKER_HOST", str),
        "port": read("STOKER_PORT", _number(0, 65535)),
        "socket_dir": read("STOKER_SOCKET_DIR", str, socket_directory(None)),
        "filler_count": read("STOKER_FILLERS", _number(1, FILLERS_MAX), str(min(2, cores))),
        "sandbox": read("MESOS_SANDBOX", str, os.getcwd()),
        "disk_bytes": read("STOKER_DISK_BYTES", _number(0), "0"),
        "disk_dir": read("STOKER_DISK_DIR", str, "ssd"),
    }
    if not faults:
        values["disk_dir"] = os.path.join(str(values["sandbox"]), str(values["disk_dir"]))
        config = KeeperConfig(**values)  # type: ignore[arg-type]
        length = len(config.socket_path.encode())
        if length <= SOCKET_PATH_BYTES_MAX:
            return config
        faults.append(
            f"STOKER_SOCKET_DIR={config.socket_dir!r} is too long: {config.socket_path} has {length} bytes,"
            f" a socket's path at most {SOCKET_PATH_BYTES_MAX}"
        )
    raise ConfigError("; ".join(faults))


def parse_schedulers(text: str) -> tuple[str, ...]:
    """Return the urls of a comma-separated list. :raises ValueError: none, too many, or one is not http://host:port."""
    urls = tuple(url.strip().rstrip("/") for url in text.split(",") if url.strip())
    if not 1 <= len(urls) <= SCHEDULERS_MAX:
        raise ValueError(f"{len(urls)} schedulers; 1 to {SCHEDULERS_MAX} are allowed")
    for url in urls:
        host, _, port = url.removeprefix("http://").rpartition(":")
        if not url.startswith("http://") or not host or not port.isdigit():
            raise ValueError(f"{url!r} is not http://host:port")
    return urls


def _parse_cluster(text: str) -> bytes:
    try:
        value = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        value = b""
    if len(value) != 16:
        raise ValueError("expected 32 hex digits")
    return value


def _number(low: int, high: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(text)

    return parse
