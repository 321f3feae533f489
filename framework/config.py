"""A scheduler's configuration: one frozen value, checked whole before any socket is opened.

Flags become a Config in cli/; it travels as JSON on standard input to `python -m stoker.framework --config -`, so that
the scheduler's process can be patched by gevent before it imports anything else, and no secret stands in argv.
Nobody else reads the environment.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import re
import socket
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stoker.executor.units import format_bytes
from stoker.framework.core.constraints import parse_constraint
from stoker.framework.core.wishes import problem_of_wish
from stoker.framework.errors import ConfigError
from stoker.framework.model import EXECUTOR_CPUS_MILLI, NAME, NAME_RULE, FleetSpec, Settings
from stoker.framework.scratch import public_path
from stoker.framework.translate import python_command
from stoker.mesos.detector import check_master, without_credentials
from stoker.zk.core.leadership import SESSION_TIMEOUT_MS, SESSION_TIMEOUT_MS_MAX, SESSION_TIMEOUT_MS_MIN
from stoker.zk.paths import parse_journal_url, told_secret

PORT_DEFAULT = 7070
FAILOVER_TIMEOUT_MS_DEFAULT = (
    14 * 86_400_000
)  # two weeks: longer than any repair, since after it Mesos kills all
_LIMITS = Settings()
INSTANCES_MAX = _LIMITS.instances_max
MEM_BYTES_MIN = _LIMITS.executor_mem_bytes_min
MEM_BYTES_MAX = _LIMITS.executor_mem_bytes_max
LOG_LEVELS = ("debug", "info", "warning", "error")

_HOST_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})")
_CREDENTIALS = re.compile(r"^zk://[^/]*@")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Config:
    """All that one scheduler is told. Sizes in bytes, times in milliseconds.

    `journal` is `file:DIR`, or `zk://HOST:PORT,.../PATH`, which several schedulers share; then `session_timeout_ms` is how
    long a dead one may pass for alive. `new_cluster` and `new_master` say what nobody could find out: that an empty
    journal is no lost one, that the cluster's master is now found at another address. `new_framework` lets a new framework
    take the place of one that Mesos has removed; otherwise it changes nothing.

    `master` is HOST:PORT, or zk://HOST:PORT,.../PATH where Mesos' masters say who leads. With `master_tls` it is spoken to over
    TLS: `master_ca` is a file of the authorities that are trusted (none: the machine's), `master_certificate` one of our
    own certificate and key, if the masters ask for it.

    `role`: None where nobody told one; then a new cluster's fleet takes `main_role`, that of everybody. `constraints` are
    FIELD:OPERATOR[:VALUE] each. `fleet` is the wanted fleet of a new cluster; an older cluster keeps the one in its journal. `secret` and `zk_secret`
    may be `env:NAME` or `file:PATH`. `bundles`: `[ATTRIBUTE:VALUE=]FILE` each, see bundles.py; else executors are started by
    `executor_command`, or by `executor_python`, which the agents have. `executor_environment` names variables that executors get from this process' environment.
    `allow_sources`: prefixes of what may be added as a dataset ("": anything); none: anything but files of the
    machines themselves.
    """

    master: str
    journal: str
    host: str = "127.0.0.1"
    port: int = PORT_DEFAULT
    advertise: str = ""
    name: str = "stoker"
    role: str | None = None
    roles_more: tuple[str, ...] = ()
    user: str = ""
    principal: str = ""
    secret: str = ""
    instances: int = 0
    mem_bytes: int = 2**30
    disk_bytes: int = 0
    constraints: tuple[str, ...] = ()
    cpus_milli: int = EXECUTOR_CPUS_MILLI
    executor_python: str = ""
    executor_command: str = ""
    executor_environment: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()
    allow_sources: tuple[str, ...] = ()
    failover_timeout_ms: int = FAILOVER_TIMEOUT_MS_DEFAULT
    gpu_agents: bool = False
    socket_dir: str = ""
    fillers: int = 0
    scratch_dir: str = ""
    zk_secret: str = ""
    session_timeout_ms: int = SESSION_TIMEOUT_MS
    new_cluster: bool = False
    new_master: bool = False
    new_framework: bool = False
    master_tls: bool = False
    master_ca: str = ""
    master_certificate: str = ""
    log_level: str = "info"
    settings: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Return the checked configuration.

        :raises ConfigError: with all problems at once.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise ConfigError([f"the configuration is not JSON: {error}"]) from error
        if not isinstance(raw, dict):
            raise ConfigError(["the configuration must be a JSON object"])
        problems = _type_problems(raw)
        if problems:
            raise ConfigError(problems)
        for name in ("executor_environment", "allow_sources", "bundles", "roles_more", "constraints"):
            raw[name] = tuple(raw.get(name, ()))
        config = cls(**raw)
        config.check()
        return config

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def check(self) -> None:
        """:raises ConfigError: with all problems at once."""
        problems = [p for check in _CHECKS for p in check(self)]
        if problems:
            raise ConfigError(problems)

    @property
    def is_shared(self) -> bool:
        """Return whether several schedulers share the journal, of whom one leads."""
        return self.journal.startswith("zk://")

    @property
    def journal_name(self) -> str:
        """Return the journal's URL as it may be told: without credentials."""
        return _CREDENTIALS.sub("zk://", self.journal)

    @property
    def master_name(self) -> str:
        """Return where Mesos is found as it may be told and journaled: without credentials."""
        return without_credentials(self.master)

    def master_context(self) -> ssl.SSLContext | None:
        """Return how the Mesos master is checked, None where plain HTTP is spoken.

        :raises ConfigError: a certificate cannot be read.
        """
        if not self.master_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.master_ca or None)
            if self.master_certificate:
                context.load_cert_chain(self.master_certificate)
        except (OSError, ssl.SSLError) as error:
            names = " or ".join(filter(None, (self.master_ca, self.master_certificate)))
            raise ConfigError([f"the TLS files {names} cannot be used: {error}"]) from error
        return context

    @property
    def journal_dir(self) -> str:
        assert not self.is_shared
        return os.path.abspath(self.journal.removeprefix("file:"))

    def scratch(self, port: int) -> str:
        """Return the directory of what can be made again: mapped manifests, listings under way.

        It is this process' own while it has `port`: what another left there is removed.
        """
        if self.scratch_dir or not self.is_shared:
            return self.scratch_dir or self.journal_dir.rstrip("/") + ".scratch"
        return public_path(self.host, port)

    @property
    def fleet(self) -> FleetSpec:
        return FleetSpec(
            self.instances,
            self.mem_bytes,
            self.cpus_milli,
            self.main_role,
            self.disk_bytes,
            tuple(map(parse_constraint, self.constraints)),
            self.roles_more,
        )

    @property
    def main_role(self) -> str:
        return "*" if self.role is None else self.role

    @property
    def framework_user(self) -> str:
        return self.user or getpass.getuser()

    @property
    def command(self) -> str:
        """Return what an agent's shell runs to start an executor."""
        return self.executor_command or python_command(self.executor_python or sys.executable)

    def decision_settings(self) -> Settings:
        return dataclasses.replace(Settings(), **self.settings)

    def url(self, port: int) -> str:
        """Return how others reach this scheduler's API, bound to `port`."""
        if self.advertise:
            return f"http://{self.advertise}"
        host = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def resolve_secret(self) -> str:
        """Return the Mesos secret itself.

        :raises ConfigError: it names a variable or a file that is not there.
        """
        try:
            return told_secret("--secret", self.secret)
        except ValueError as error:
            raise ConfigError([str(error)]) from error

    def executor_variables(self) -> dict[str, str]:
        """Return the operator's variables for executors; a name that is not set is left out."""
        return {name: os.environ[name] for name in self.executor_environment if name in os.environ}


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "bool": (bool,),
}


def _type_problems(raw: dict[str, Any]) -> list[str]:
    fields = {f.name: f for f in dataclasses.fields(Config)}
    problems = [
        f"unknown field {name!r}; known are {', '.join(sorted(fields))}" for name in raw if name not in fields
    ]
    problems += [f"{name!r} is missing" for name in ("master", "journal") if name not in raw]
    for name, value in raw.items():
        if name not in fields:
            continue
        kind = str(fields[name].type)
        if kind in _KINDS:
            if type(value) not in _KINDS[kind]:
                problems.append(f"{name!r} must be {kind}, not {type(value).__name__}")
        elif kind.startswith("tuple"):
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                problems.append(f"{name!r} must be a list of strings")
        elif not isinstance(value, dict) or not all(type(v) is int for v in value.values()):
            problems.append(f"{name!r} must map names to whole numbers")
    return problems


def _master_problems(config: Config) -> list[str]:
    shown = without_credentials(config.master)
    try:
        check_master(config.master)
    except ValueError as error:
        return [f"--master {shown!r}: {error}"]
    if (config.master_ca or config.master_certificate) and not config.master_tls:
        return ["--master-ca and --master-certificate are for --master-tls: give it too, or leave them out"]
    return []


def _address_problems(flag: str, address: str, form: str) -> list[str]:
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65_536:
        return [f"{flag} {address!r}: write {form}"]
    return []


def _journal_problems(config: Config) -> list[str]:
    if config.is_shared:
        return _zk_problems(config)
    if not config.journal.startswith("file:") or len(config.journal) <= len("file:"):
        return [f"--journal {config.journal!r}: write file:DIR, or --zk zk://HOST:PORT,HOST:PORT/PATH"]
    if "\0" in config.journal:
        return ["--journal: a directory's name has no NUL"]
    return []


def _zk_problems(config: Config) -> list[str]:
    problems = []
    try:
        parse_journal_url(config.journal)
    except ValueError as error:
        problems.append(f"--zk: {error}")
    if not SESSION_TIMEOUT_MS_MIN <= config.session_timeout_ms <= SESSION_TIMEOUT_MS_MAX:
        allowed = f"{SESSION_TIMEOUT_MS_MIN} ms to {SESSION_TIMEOUT_MS_MAX // 1000} s"
        problems.append(f"--session-timeout: {config.session_timeout_ms} ms; {allowed} are allowed")
    return problems


def _listener_problems(config: Config) -> list[str]:
    problems = []
    if not 0 <= config.port < 65_536:
        problems.append(f"--port {config.port}: write 1 to 65535, or 0 for any free one")
    if config.advertise:
        problems += _address_problems("--advertise", config.advertise, "HOST:PORT")
    if config.log_level not in LOG_LEVELS:
        problems.append(f"log level {config.log_level!r}: one of {', '.join(LOG_LEVELS)}")
    return problems


def _identity_problems(config: Config) -> list[str]:
    problems = []
    if not NAME.fullmatch(config.name):
        problems.append(f"--name {config.name!r}: {NAME_RULE}")
    if bool(config.principal) != bool(config.secret):
        problems.append("--principal and --secret go together: give both or neither")
    problems += [
        f"--executor-env {name!r}: a variable's name has letters, digits and '_' only"
        for name in config.executor_environment
        if not _ENVIRONMENT_NAME.fullmatch(name)
    ]
    return problems


def _fleet_problems(config: Config) -> list[str]:
    problems = []
    if not 0 <= config.instances <= INSTANCES_MAX:
        problems.append(f"--instances {config.instances}: 0 to {INSTANCES_MAX}")
    if not MEM_BYTES_MIN <= config.mem_bytes <= MEM_BYTES_MAX:
        problems.append(
            f"--mem {config.mem_bytes}: {format_bytes(MEM_BYTES_MIN)} to {format_bytes(MEM_BYTES_MAX)} an executor"
        )
    for text in config.constraints:
        try:
            parse_constraint(text)
        except ValueError as error:
            return [*problems, f"--constraint {text!r}: {error}"]
    message, hint = problem_of_wish(config.fleet, _LIMITS)
    if message:
        problems.append(f"--role, --disk or --constraint: {message}; {hint}")
    if config.cpus_milli < 20:
        problems.append(f"an executor needs at least 0.02 cpus, not {config.cpus_milli / 1000}")
    if config.failover_timeout_ms <= 0:
        problems.append("the failover timeout must be above 0: at 0 Mesos kills everything on a disconnect")
    return problems


def _settings_problems(config: Config) -> list[str]:
    known = {f.name for f in dataclasses.fields(Settings)}
    problems = [
        f"unknown setting {s!r}; known are {', '.join(sorted(known))}"
        for s in config.settings
        if s not in known
    ]
    problems += [
        f"setting {s!r} must be above 0, not {v}" for s, v in config.settings.items() if s in known and v <= 0
    ]
    return problems


_CHECKS = (
    _master_problems,
    _journal_problems,
    _listener_problems,
    _identity_problems,
    _fleet_problems,
    _settings_problems,
)
