"""`stoker bundle`: the executor, with all that it needs, as one file that any agent can run.

The tool is pex, run as a process of its own. A bundle makes itself a virtual environment at its first start, so that the
executor's processes start one another as they do anywhere (`sys.executable -m ...`); it needs no HOME and no pip there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

import click

from stoker.executor.units import format_bytes
from stoker.framework.cli.output import fail, reports_errors

_TARGET = re.compile(r"cp3(?P<minor>\d{1,2})-(?P<platform>[a-z0-9_]+)")


@click.command()
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="the file to write [default: stoker-executor-VERSION-cp3XX-ARCH.pex]",
)
@click.option(
    "--with",
    "extra",
    multiple=True,
    metavar="REQUIREMENT",
    help="also put in this package, s3fs or pyarrow for instance; repeatable",
)
@click.option(
    "--target",
    metavar="cp3XX-PLATFORM",
    help="for another Python or machine, cp313-manylinux_2_28_aarch64 for instance: its wheels come from the package "
    "index and --find-links [default: this Python and machine, from this installation, without a network]",
)
@click.option(
    "--find-links",
    multiple=True,
    metavar="DIR",
    help="with --target: a directory of wheels, Stoker's own among them; repeatable",
)
@reports_errors
def bundle(
    output: pathlib.Path | None, extra: tuple[str, ...], target: str | None, find_links: tuple[str, ...]
) -> None:
    """Make one file that holds the executor and every package that it needs.

    Give it to the schedulers (stoker scheduler --bundle FILE): they serve it, and Mesos' fetcher brings it to the agents,
    which need nothing but a Python of the same minor version.
    """
    if importlib.util.find_spec("pex") is None:
        fail("pex is not installed", "pip install 'stoker[bundle]'")
    version = importlib.metadata.version("stoker")
    if target is None:
        if sys.prefix == sys.base_prefix:
            hint = "make one with: python3 -m venv VENV && VENV/bin/pip install 'stoker[cluster,bundle]'"
            fail("this Stoker is not installed in a virtual environment", hint)
        if find_links:
            fail("--find-links is for --target", "without it the bundle is made of this installation")
        minor, machine = str(sys.version_info.minor), platform.machine()
        where = ["--venv-repository", sys.prefix]
    else:
        match = _TARGET.fullmatch(target)
        if match is None:
            raise click.UsageError(
                f"{target!r} is no target: write cp3XX-PLATFORM, such as cp313-manylinux_2_28_aarch64"
            )
        minor, machine = match["minor"], match["platform"]
        where = ["--platform", f"{machine}-cp-3{minor}-cp3{minor}", "--only-binary", ":all:"]
        where += [argument for links in find_links for argument in ("--find-links", links)]
    output = output or pathlib.Path(f"stoker-executor-{version}-cp3{minor}-{machine}.pex")
    click.echo(f"making {output}: half a minute, or a few where wheels are fetched first", err=True)
    _make(output, [f"stoker[cluster]=={version}", *extra], where, minor)
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    click.echo(f"{output}: {format_bytes(output.stat().st_size)}, Python 3.{minor}, sha256 {digest}")
    click.echo(f"stoker scheduler --bundle {output} ...")


def _make(output: pathlib.Path, requirements: list[str], where: list[str], minor: str) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stoker-bundle-") as work:
        made = pathlib.Path(work) / "made.pex"
        command = [sys.executable, "-m", "pex", *requirements, *where, "--venv", "prepend", "--sh-boot"]
        command += ["--python-shebang", f"/usr/bin/env python3.{minor}", "-m", "stoker.executor"]
        command += ["--output-file", str(made)]
        environment = {**os.environ, "PEX_ROOT": str(pathlib.Path(work) / "root")}
        result = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if result.returncode or not made.exists():
            said = (result.stderr or result.stdout).strip().splitlines()[-20:]
            click.echo("\n".join(said), err=True)
            fail("pex could not make the bundle", "what it said stands above")
        partial = output.with_name(output.name + ".partial")
        partial.write_bytes(made.read_bytes())
        partial.chmod(0o755)
        partial.replace(output)
