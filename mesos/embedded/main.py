"""The embedded Mesos as a process: its command line, `stoker mesos`.

Prints `listening on http://HOST:PORT` once it takes calls. SIGTERM or SIGINT ends it with its executors; a second one kills them.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent

from stoker.mesos.embedded.authentication import CredentialError, parse_credential
from stoker.mesos.embedded.config import Config, ConfigError, parse_ports, parse_size
from stoker.mesos.embedded.core.values import Settings
from stoker.mesos.embedded.server import EmbeddedMesos
from stoker.zk.paths import ZkUrl, parse_zk_url

SECONDS_MAX = 1e9  # of any option: 30 years

_TIMINGS = {
    "allocation-interval": ("allocation_interval_ms", "between two rounds of offers"),
    "default-refuse": (
        "default_refuse_ms",
        "that a refused offer is not made again, if the call does not say",
    ),
    "heartbeat-interval": ("heartbeat_interval_ms", "of a scheduler's stream"),
    "update-retry": ("update_retry_ms", "until an update that was not acknowledged comes again; doubles"),
    "update-retry-max": ("update_retry_ms_max", "at most that long"),
    "agent-ping-timeout": ("agent_ping_timeout_ms", "that a ping of an agent may go unanswered"),
    "agent-reregister-timeout": ("agent_reregister_timeout_ms", "for agents to find a new master"),
    "agent-recovery": ("agent_recovery_ms", "that a starting agent needs until it answers its executors"),
    "reap-interval": ("reap_interval_ms", "until an agent notices the end of an executor that outlived it"),
    "registration-backoff": ("registration_backoff_ms", "of an agent that looks for its master"),
    "executor-registration-timeout": (
        "executor_registration_timeout_ms",
        "from a launch to the executor's SUBSCRIBE",
    ),
    "executor-reregistration-timeout": (
        "executor_reregistration_timeout_ms",
        "for executors to come back to a restarted agent; at most 15",
    ),
    "executor-shutdown-grace-period": (
        "executor_shutdown_grace_period_ms",
        "from SHUTDOWN to SIGKILL",
    ),
    "recovery-timeout": ("recovery_timeout_ms", "that executors wait for their agent to come back"),
}
_POSITIVE = frozenset(_TIMINGS) - {
    "agent-recovery",
    "executor-reregistration-timeout",
    "reap-interval",
    "registration-backoff",
}


def run(config: Config) -> int:
    """Run until SIGTERM or SIGINT and return 0.

    :raises ConfigError: the work_dir is in use. :raises OSError: a port or address cannot be had.
    """
    mesos = EmbeddedMesos(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, mesos.end)
    url = mesos.start()
    print(f"listening on {url}", flush=True)
    for seat in mesos.masters[1:]:
        print(f"master {seat.number} on http://{seat.spec.endpoint}", flush=True)
    try:
        mesos.wait()
    finally:
        mesos.stop()
    return 0


def usage(**defaults: object) -> str:
    """Return the help text, with other `defaults`."""
    parser = _parser()
    parser.set_defaults(**defaults)
    return parser.format_help()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code (1 failed, 2 wrong usage)."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        config = _config(given)
        if given.work_dir:
            return run(config)
        with tempfile.TemporaryDirectory(prefix="stoker-mesos-", ignore_cleanup_errors=True) as made:
            return run(replace(config, work_dir=Path(made)))
    except (ConfigError, CredentialError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{given.host}:{given.port}"
        print(
            f"error: cannot listen on {where} or an agent's address: {error.strerror or error}",
            file=sys.stderr,
        )
        return 1


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Begins as all of Stoker's help does, and tells defaults where there are any."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, prefix or "Usage: ")

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "") or action.default == []:
            return action.help
        return super()._get_help_string(action)


def _config(given: argparse.Namespace) -> Config:
    return Config(
        work_dir=Path(given.work_dir or ""),
        host=given.host,
        port=given.port,
        agents=given.agents,
        cpus=given.cpus,
        mem_bytes=parse_size(given.mem),
        disk_bytes=parse_size(given.disk),
        ports=parse_ports(given.ports) if given.ports else None,
        attributes=tuple(given.attributes),
        hostnames=tuple(name.strip() for name in given.hostnames.split(",") if name.strip()),
        settings=_settings(given),
        masters=given.masters,
        zk=_place(given.zk) if given.zk else None,
        zk_session_timeout_ms=_milliseconds("zk-session-timeout", given.zk_session_timeout),
        credentials=tuple(parse_credential(text) for text in given.authenticate),
        domains=tuple(given.domain),
        keeps_registry=given.master_registry == "replicated_log",
        recovers=given.recover == "reconnect",
        has_faults=given.faults,
        resources=tuple(given.resources),
        fetcher_cache_bytes=parse_size(given.fetcher_cache_size),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stoker mesos",
        usage="stoker mesos [OPTIONS]",
        description="A Mesos master (or several) and its agents in one process: the real HTTP APIs, real executor processes, "
        "for laptops and tests.",
        formatter_class=_Formatter,
    )
    add = parser.add_argument_group("what there is").add_argument
    add("--host", default="127.0.0.1", help="address of the master")
    add("--port", type=int, default=5050, help="port of the master; 0 takes any free one")
    add("--agents", type=int, default=1, help="how many agents")
    add("--cpus", type=float, default=4.0, help="of each agent")
    add("--mem", default="4GiB", metavar="SIZE", help="of each agent")
    add("--disk", default="10GiB", metavar="SIZE", help="of each agent")
    add("--ports", metavar="A-B", help="of the first agent; the others' follow (31000-31999 if not given)")
    _add_list(
        add,
        "--resources",
        "NAME:AMOUNT[;...]",
        "like cpus:4;disk(role):512, in the place of the above: for all agents, or once for each",
    )
    _add_list(add, "--attributes", "NAME:VALUE[;...]", "for all agents, or once for each")
    add(
        "--hostnames",
        default="",
        metavar="A,B,...",
        help="one for each agent (127.0.0.10 and up if not given)",
    )
    _add_list(
        add,
        "--domain",
        "REGION/ZONE",
        "fault domain: once for all; or the master's, and then one for all agents or one for each",
    )
    add(
        "--work-dir",
        metavar="DIR",
        help="sandboxes, volumes, and what a restart needs (a temporary one, gone at the end, if not given)",
    )
    add("--fetcher-cache-size", default="2GiB", metavar="SIZE", help="of each agent")

    add = parser.add_argument_group("the master").add_argument
    add("--zk", metavar="URL", help="zk://[USER:SECRET@]HOST:PORT,.../PATH: tell there who leads")
    add(
        "--zk-session-timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="after which a dead master's place is free",
    )
    add(
        "--masters",
        type=int,
        default=1,
        help="how many masters compete in --zk; the others have ports of their own",
    )
    add(
        "--master-registry",
        choices=("in_memory", "replicated_log"),
        default="in_memory",
        help="whether the next leader knows which agents there were",
    )
    _add_list(
        add,
        "--authenticate",
        "PRINCIPAL:SECRET",
        "who may call (else everybody); SECRET may be env:NAME or file:PATH",
    )

    add = parser.add_argument_group("restart and faults").add_argument
    add(
        "--recover",
        choices=("reconnect", "cleanup"),
        default="reconnect",
        help="what becomes of executors that outlived a killed predecessor on this --work-dir",
    )
    add(
        "--reconfiguration-policy",
        choices=("equal", "additive"),
        default="equal",
        help="what a restarted agent may offer, compared with before",
    )
    add(
        "--faults",
        action="store_true",
        help="take orders for faults: POST /stoker/faults on the loopback port that DIR/meta/faults.json names",
    )
    add(
        "--log-level",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        help="to standard error",
    )

    add = parser.add_argument_group("times, in seconds").add_argument
    defaults = Settings()
    for name, (field, text) in _TIMINGS.items():
        add(f"--{name}", type=float, default=getattr(defaults, field) / 1000, metavar="SECONDS", help=text)
    add(
        "--offer-timeout",
        type=float,
        metavar="SECONDS",
        help="after which an offer is rescinded (never if not given)",
    )
    add(
        "--max-agent-ping-timeouts",
        type=int,
        default=defaults.agent_ping_timeouts_max,
        help="pings in a row until it is lost",
    )
    return parser


def _add_list(add: Any, name: str, metavar: str, text: str) -> None:
    add(name, action="append", default=[], metavar=metavar, help=text)


def _settings(given: argparse.Namespace) -> Settings:
    values: dict[str, Any] = {}
    for name, (field, _) in _TIMINGS.items():
        values[field] = _milliseconds(name, getattr(given, name.replace("-", "_")))
        if values[field] <= 0 and name in _POSITIVE:
            raise ConfigError(f"--{name} must be at least 0.001 seconds")
        if values[field] < 0:
            raise ConfigError(f"--{name} must not be negative")
    if values["update_retry_ms"] > values["update_retry_ms_max"]:
        raise ConfigError("--update-retry must not be more than --update-retry-max")
    if values["executor_reregistration_timeout_ms"] > 15_000:
        raise ConfigError("--executor-reregistration-timeout must not be more than 15 seconds")
    if given.offer_timeout is not None and _milliseconds("offer-timeout", given.offer_timeout) <= 0:
        raise ConfigError("--offer-timeout must be at least 0.001 seconds")
    if given.max_agent_ping_timeouts < 1:
        raise ConfigError("--max-agent-ping-timeouts must be at least 1")
    return Settings(
        **values,
        agent_ping_timeouts_max=given.max_agent_ping_timeouts,
        offer_timeout_ms=None if given.offer_timeout is None else round(given.offer_timeout * 1000),
        reconfiguration_policy=given.reconfiguration_policy,
    )


def _milliseconds(name: str, seconds: float) -> int:
    if not math.isfinite(seconds) or abs(seconds) > SECONDS_MAX:
        raise ConfigError(f"--{name} is {seconds:g}: write a number of seconds, {SECONDS_MAX:g} at most")
    return round(seconds * 1000)


def _place(url: str) -> ZkUrl:
    if not url.startswith("zk://"):
        raise ConfigError("--zk must be zk://HOST:PORT[,HOST:PORT...]/PATH")
    try:
        return parse_zk_url(url)
    except ValueError as error:
        raise ConfigError(f"--zk: {error}") from error
