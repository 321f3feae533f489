"""`stoker scheduler`, `stoker mesos` and `stoker local`: the long-running commands."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import signal
import sys
import tempfile
from typing import Any

import click

from stoker.executor.units import format_bytes
from stoker.framework.cli.common import DURATION, SIZE, default_mem_bytes
from stoker.framework.cli.local import LocalCluster, LocalSpec
from stoker.framework.cli.output import fail, reports_errors
from stoker.framework.config import Config
from stoker.framework.errors import ConfigError
from stoker.framework.model import Settings

LOCAL_PORT = 7070
LOCAL_AGENTS = 3
MESOS_CPUS = 2.0  # of each agent of `stoker mesos`
MESOS_MEM = "2GiB"
FORWARDED_PREFIXES = ("AWS_", "FSSPEC_")
WATCH_INTERVAL_S = 1


def require_cluster_extra() -> None:
    """End with a clear line where only the client is installed."""
    if importlib.util.find_spec("gevent") is None or importlib.util.find_spec("pymesos") is None:
        fail("schedulers and executors need more packages", "pip install 'stoker[cluster]'")


@click.command()
@click.option(
    "--master",
    required=True,
    metavar="HOST:PORT or zk://...",
    help="the Mesos master: its address, or zk://HOST:PORT,.../mesos where the masters say who leads",
)
@click.option("--master-tls", is_flag=True, help="speak to the Mesos master over TLS")
@click.option(
    "--master-ca",
    default="",
    metavar="FILE",
    help="with --master-tls: the certificates of the authorities that are trusted [default: the machine's]",
)
@click.option(
    "--master-certificate",
    default="",
    metavar="FILE",
    help="with --master-tls: our own certificate and key in one PEM file, where the masters ask for them",
)
@click.option(
    "--zk",
    metavar="zk://HOST:PORT,.../PATH",
    help="the metadata journal in ZooKeeper, where several schedulers elect their leader; zk://USER:SECRET@HOST... for a "
    "path that is not everybody's",
)
@click.option(
    "--zk-secret",
    default="",
    help="USER:SECRET of --zk (or the SECRET alone, where --zk names the USER), as env:NAME or file:PATH, so that it "
    "stands in no process list",
)
@click.option(
    "--journal", metavar="file:DIR", help="or the journal in a directory: one scheduler, no ZooKeeper"
)
@click.option(
    "--session-timeout",
    "session_timeout_ms",
    default="10s",
    show_default=True,
    type=DURATION,
    help="with --zk: how long after a leader's death (or loss of ZooKeeper) the next one may lead; the servers bound it "
    "to 2 to 20 of their ticks",
)
@click.option(
    "--new-cluster",
    is_flag=True,
    help="begin a new cluster on an empty journal even if Mesos knows a framework of our name",
)
@click.option(
    "--new-master",
    is_flag=True,
    help="with --zk: take --master as it is, though the schedulers before had another: it has moved, or is another one "
    "of the same Mesos",
)
@click.option(
    "--new-framework",
    is_flag=True,
    help="if Mesos has removed the cluster's framework: go on under a new framework id; otherwise it changes nothing",
)
@click.option("--name", default="stoker", show_default=True, help="the framework's name")
@click.option("--host", default="127.0.0.1", show_default=True, help="address of the API")
@click.option("--port", default=LOCAL_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--advertise",
    default="",
    metavar="HOST:PORT",
    help="how executors, users and the other schedulers reach this API [default: --host and --port; this machine's "
    "name where --host is 0.0.0.0]",
)
@click.option(
    "--instances",
    default=1,
    show_default=True,
    type=click.IntRange(0, 10_000),
    help="executors wanted (a new cluster's fleet)",
)
@click.option(
    "--mem",
    "mem_bytes",
    default="1GiB",
    show_default=True,
    type=SIZE,
    help="MEM tier of each (a new cluster's fleet)",
)
@click.option(
    "--disk",
    "disk_bytes",
    default="0",
    type=SIZE,
    help="SSD tier of each, on a persistent volume (a new cluster's fleet) [default: none]",
)
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    metavar="FIELD:OPERATOR[:VALUE]",
    help="which agents are used, in Marathon's words, such as rack:GROUP_BY:3 (a new cluster's fleet); repeatable",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    help="Mesos role whose offers are taken (a new cluster's fleet; without one *); repeatable",
)
@click.option("--principal", default="", help="Mesos principal")
@click.option(
    "--secret", default="", help="its secret; as env:NAME or file:PATH it stands in no process list"
)
@click.option("--failover-timeout", "failover_timeout_ms", default="14d", show_default=True, type=DURATION)
@click.option("--gpu-agents", is_flag=True, help="also take offers of agents with GPUs (no GPU is used)")
@click.option(
    "--allow-source",
    "allow_sources",
    multiple=True,
    metavar="PREFIX",
    help="what datasets may be added from; repeatable",
)
@click.option(
    "--executor-env",
    "executor_environment",
    multiple=True,
    metavar="NAME",
    help="pass this variable on to executors; repeatable",
)
@click.option(
    "--executor-python", default="", help="Python that has Stoker on the agents [default: this one]"
)
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    metavar="[ATTRIBUTE:VALUE=]FILE",
    help="what `stoker bundle` made: served to the agents, of that attribute or of no other's, which start executors from "
    "it; every scheduler is given the same; repeatable",
)
@click.option(
    "--socket-dir", default="", help="directory of the executors' Unix sockets [default: /tmp/stoker-UID]"
)
@click.option(
    "--jobs-kept",
    "jobs_kept_max",
    default=Settings().jobs_kept_max,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="finished jobs that are remembered, with their idempotency keys; the oldest are forgotten",
)
@click.option(
    "--jobs-kept-for",
    "jobs_kept_ms",
    default="7d",
    show_default=True,
    type=DURATION,
    help="how long a finished job is remembered",
)
@click.option(
    "--volume-patience",
    "volume_patience_ms",
    default="1h",
    show_default=True,
    type=DURATION,
    help="how long an executor's slot waits for the agent that has its volume before it is launched elsewhere; the volume is "
    "kept",
)
@click.option(
    "--volumes-kept-for",
    "volumes_kept_ms",
    default="30d",
    show_default=True,
    type=DURATION,
    help="how long a volume is remembered that no slot has and whose agent makes no offers; nothing is destroyed by that",
)
@click.option(
    "--unreachable-delay",
    "unreachable_delay_ms",
    default="5m",
    show_default=True,
    type=DURATION,
    help="how long an executor that nobody can reach is waited for before its slot is launched elsewhere",
)
@click.option(
    "--scratch-dir",
    default="",
    metavar="DIR",
    help="for what can be made again, this process' own [default: beside a journal's DIR; with --zk a directory of this "
    "user, host and port in the temporary directory]",
)
def scheduler(
    zk: str | None,
    journal: str | None,
    jobs_kept_max: int,
    jobs_kept_ms: int,
    volume_patience_ms: int,
    volumes_kept_ms: int,
    unreachable_delay_ms: int,
    roles: tuple[str, ...],
    **options: Any,
) -> None:
    """Run one scheduler in the foreground.

    With --zk run two or more, on different machines: one leads, the others follow what it does and one of them takes over
    when it is gone; each sends its callers on to the leader.
    """
    require_cluster_extra()
    if bool(zk) == bool(journal):
        raise click.UsageError(
            "say where the journal is, by one of --zk zk://HOST:PORT,.../PATH and --journal file:DIR"
        )
    if zk and not zk.startswith("zk://"):
        raise click.UsageError(f"--zk {zk!r}: write zk://HOST:PORT,HOST:PORT/PATH")
    try:
        settings = {
            "jobs_kept_max": jobs_kept_max,
            "jobs_kept_ms": jobs_kept_ms,
            "volume_patience_ms": volume_patience_ms,
            "volumes_kept_ms": volumes_kept_ms,
            "unreachable_delay_ms": unreachable_delay_ms,
        }
        options |= {"role": roles[0] if roles else None, "roles_more": roles[1:]}
        config = Config(journal=zk or journal or "", settings=settings, **options)
        config.check()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    descriptor = os.memfd_create("stoker-config")  # standard input: no secret stands in argv
    os.write(descriptor, config.to_json().encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.dup2(descriptor, 0)
    _become([sys.executable, "-m", "stoker.framework", "--config", "-"])


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.option("--host", default="127.0.0.1")
@click.option("--port", default=5050, type=click.IntRange(0, 65535))
@click.option("--agents", default=LOCAL_AGENTS, type=click.IntRange(1, 1000))
@click.option("--cpus", default=MESOS_CPUS, type=float)
@click.option("--mem", "mem_bytes", default=MESOS_MEM, type=SIZE)
@click.option("--work-dir", default="")
@click.option("--help", "-h", "wants_help", is_flag=True)
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def mesos(
    host: str,
    port: int,
    agents: int,
    cpus: float,
    mem_bytes: int,
    work_dir: str,
    wants_help: bool,
    more: tuple[str, ...],
) -> None:
    """Run the embedded Mesos alone: one master and N agents, for laptops and tests."""
    require_cluster_extra()
    if wants_help:
        from stoker.mesos.embedded.main import usage  # it needs what require_cluster_extra asks for

        click.echo(usage(agents=LOCAL_AGENTS, cpus=MESOS_CPUS, mem=MESOS_MEM))
        return
    command = [
        sys.executable,
        "-m",
        "stoker.mesos.embedded",
        "--host",
        host,
        "--port",
        str(port),
        "--agents",
        str(agents),
    ]
    place = ["--work-dir", work_dir] if work_dir else []  # without one it makes and removes its own
    _become([*command, "--cpus", str(cpus), "--mem", str(mem_bytes), *place, *more])


def _become(command: list[str]) -> None:
    """Replace this process, so that the new one is patched, or not, before anything is imported."""
    os.execv(command[0], command)


@click.command()
@click.option("--agents", default=LOCAL_AGENTS, show_default=True, type=click.IntRange(1, 64))
@click.option(
    "--mem",
    "mem_bytes",
    type=SIZE,
    help="MEM tier of each executor [default: 1GiB, or a quarter of the free memory shared]",
)
@click.option(
    "--port",
    default=LOCAL_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="of the API; 0: any free one",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="keep the journal here [default: gone at the end]",
)
@click.option(
    "--executor-env",
    "names",
    multiple=True,
    metavar="NAME",
    help="pass this variable on to executors; AWS_* and FSSPEC_* always are",
)
@click.option(
    "--socket-dir", default="", help="directory of the executors' Unix sockets [default: /tmp/stoker-UID]"
)
@reports_errors
def local(
    agents: int,
    mem_bytes: int | None,
    port: int,
    state: pathlib.Path | None,
    names: tuple[str, ...],
    socket_dir: str,
) -> None:
    """Run a whole cluster on this machine, in the foreground: embedded Mesos, a scheduler, N executors.

    Ctrl-C stops all of it; a restart on the same --state finds everything again.
    """
    require_cluster_extra()
    with tempfile.TemporaryDirectory(prefix="stoker-local-") as temporary:
        spec = LocalSpec(
            agents=agents,
            mem_bytes=mem_bytes or default_mem_bytes(agents),
            port=port,
            state=(state or pathlib.Path(temporary)).resolve(),
            executor_environment=(*names, *forwarded_names()),
            socket_dir=socket_dir,
        )
        _run_local(LocalCluster(spec), kept=state is not None)


def forwarded_names() -> tuple[str, ...]:
    """Return the variables of our environment that a local cluster's executors always get."""
    return tuple(sorted(name for name in os.environ if name.startswith(FORWARDED_PREFIXES)))


def _run_local(cluster: LocalCluster, *, kept: bool) -> None:
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    cluster.start()
    try:
        click.echo(f"{cluster.spec.agents} agents, executors of {format_bytes(cluster.spec.mem_bytes)}")
        click.echo(f"state: {cluster.spec.state}" if kept else "state: temporary (--state DIR keeps it)")
        click.echo(f"STOKER_URL={cluster.url}")
        while signal.sigtimedwait(signals, WATCH_INTERVAL_S) is None:
            cluster.check()
        click.echo("stopping", err=True)
    finally:
        cluster.stop()
