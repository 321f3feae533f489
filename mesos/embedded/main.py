"""The embedded Mesos as a process: `run`, and its command line.

Prints `listening on http://HOST:PORT` once it takes calls. SIGTERM or SIGINT ends it with its executors; a second one kills them.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gevent

from stoker.mesos.embedded.config import Config, ConfigError, parse_ports, parse_size
from stoker.mesos.embedded.core.values import Settings
from stoker.mesos.embedded.server import EmbeddedMesos


def run(
    *,
    work_dir: str | Path,
    host: str = "127.0.0.1",
    port: int = 5050,
    agents: int = 1,
    cpus: float = 4.0,
    mem_bytes: int = 4 * 2**30,
    disk_bytes: int = 10 * 2**30,
    ports: tuple[int, int] | None = None,
    attributes: Sequence[str] = (),
    hostnames: Sequence[str] = (),
    settings: Settings | None = None,
    announce: Callable[[str], object] | None = None,
) -> int:
    """Run until SIGTERM or SIGINT and return 0; resources are those of each agent, in bytes and cpus.

    `announce` gets the master's URL once it takes calls; by default `listening on URL` is printed.

    :raises ConfigError: a value is not allowed, or the work_dir is in use. :raises OSError: a port or address cannot be had.
    """
    config = Config(
        work_dir=Path(work_dir),
        host=host,
        port=port,
        agents=agents,
        cpus=cpus,
        mem_bytes=mem_bytes,
        disk_bytes=disk_bytes,
        ports=ports,
        attributes=tuple(attributes),
        hostnames=tuple(hostnames),
        settings=settings or Settings(),
    )
    mesos = EmbeddedMesos(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, mesos.end)
    url = mesos.start()
    (announce or _announce)(url)
    try:
        mesos.wait()
    finally:
        mesos.stop()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code (1 failed, 2 wrong usage)."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        return run(
            work_dir=given.work_dir,
            host=given.host,
            port=given.port,
            agents=given.agents,
            cpus=given.cpus,
            mem_bytes=parse_size(given.mem),
            disk_bytes=parse_size(given.disk),
            ports=parse_ports(given.ports) if given.ports else None,
            attributes=given.attributes,
            hostnames=[name.strip() for name in given.hostnames.split(",") if name.strip()],
            settings=_settings(given),
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{given.host}:{given.port}"
        print(
            f"error: cannot listen on {where} or an agent's address: {error.strerror or error}",
            file=sys.stderr,
        )
        return 1


def _announce(url: str) -> None:
    print(f"listening on {url}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stoker.mesos.embedded", description="A Mesos master and its agents in one process."
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address of the master")
    add("--port", type=int, default=5050, help="port of the master; 0 takes any free one")
    add("--agents", type=int, default=1, help="how many agents")
    add("--cpus", type=float, default=4.0, help="of each agent")
    add("--mem", default="4GiB", metavar="SIZE", help="of each agent")
    add("--disk", default="10GiB", metavar="SIZE", help="of each agent")
    add("--ports", metavar="A-B", help="of the first agent; the others' follow; default 31000-31999")
    add("--work-dir", required=True, metavar="DIR", help="sandboxes, and what a restart needs")
    add(
        "--attributes",
        action="append",
        default=[],
        metavar="NAME:VALUE[;...]",
        help="for all agents, or once for each",
    )
    add("--hostnames", default="", metavar="A,B,...", help="one for each agent; default 127.0.0.10 and up")
    add("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    defaults = Settings()
    for name, default_ms in _TIMINGS.items():
        value = getattr(defaults, f"{default_ms}") / 1000
        add(f"--{name}", type=float, default=value, metavar="SECONDS", help=f"default {value:g}")
    return parser


_TIMINGS = {
    "allocation-interval": "allocation_interval_ms",
    "heartbeat-interval": "heartbeat_interval_ms",
    "update-retry": "update_retry_ms",
    "update-retry-max": "update_retry_ms_max",
    "executor-registration-timeout": "executor_registration_timeout_ms",
    "executor-shutdown-grace-period": "executor_shutdown_grace_period_ms",
    "recovery-timeout": "recovery_timeout_ms",
}


def _settings(given: argparse.Namespace) -> Settings:
    values = {field: round(getattr(given, name.replace("-", "_")) * 1000) for name, field in _TIMINGS.items()}
    wrong = [name for name, field in _TIMINGS.items() if values[field] <= 0]
    if wrong:
        raise ConfigError(f"--{wrong[0]} must be at least 0.001 seconds")
    if values["update_retry_ms"] > values["update_retry_ms_max"]:
        raise ConfigError("--update-retry must not be more than --update-retry-max")
    return Settings(**values)
