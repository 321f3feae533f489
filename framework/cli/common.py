"""What every command of the CLI shares: where the scheduler is, the token, --json, and types that people type."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from stoker.client.api import Client
from stoker.client.errors import UrlError
from stoker.executor.units import parse_bytes, parse_duration_ms
from stoker.framework.cli.finding import NotFound, resolve_url
from stoker.framework.cli.output import Output, fail, reports_errors


class SizeType(click.ParamType[int]):
    """`512MiB`, `10GiB` on the command line; integer bytes in the program."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DurationType(click.ParamType[int]):
    """`20ms`, `10s`, `5m` on the command line; integer milliseconds in the program."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration_ms(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = SizeType()
DURATION = DurationType()


def api_command(function: Callable[..., None]) -> Callable[..., None]:
    """Add --url, --token and --json; `function` gets a Client and an Output first, then its own options.

    Goes right below `@group.command()`, above the command's own options.
    """

    @click.option(
        "--url",
        envvar="STOKER_URL",
        help="the schedulers, http://host:port[,host:port], or zk://host:port,host:port/path, where they elect their leader "
        "(STOKER_ZK_SECRET: USER:SECRET for it, if it needs one); else STOKER_URL",
    )
    @click.option("--token", envvar="STOKER_TOKEN", help="a bearer token; else STOKER_TOKEN")
    @click.option("--json", "as_json", is_flag=True, help="print JSON")
    @functools.wraps(function)
    def run(url: str | None, token: str | None, as_json: bool, **options: Any) -> None:
        if not url:
            raise click.UsageError("no scheduler given: set STOKER_URL or pass --url http://HOST:PORT")
        try:
            client = Client(resolve_url(url), token=token or "")
        except NotFound as error:
            fail(str(error))
        except (UrlError, ValueError) as error:
            raise click.UsageError(str(error)) from error
        reports_errors(function)(client, Output(as_json=as_json), **options)

    return run


def default_mem_bytes(agents: int) -> int:
    """Return 1 GiB, or a quarter of the free memory shared by `agents` where that is less (whole MiB, at least 32)."""
    with open("/proc/meminfo") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    mebibytes = min(2**30, free // 4 // agents) // 2**20
    return max(32, mebibytes) * 2**20
