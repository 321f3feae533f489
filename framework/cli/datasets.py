"""`stoker dataset`: add, ls, show, set, refresh, rm."""

from __future__ import annotations

import contextlib
import time
from typing import Any, NoReturn

import click

from stoker.client.api import Client
from stoker.client.errors import ApiError
from stoker.executor.units import format_bytes
from stoker.framework.cli.common import api_command
from stoker.framework.cli.output import Output, fail
from stoker.framework.model import Policy, Settings, Tier

_LIMITS = Settings()
POLL_INTERVAL_S = 0.2

_COLUMNS = ["NAME", "STATE", "FILES>", "BYTES>", "CACHED>", "REPLICAS>", "VERSION>", "SOURCE"]


@click.group()
def dataset() -> None:
    """Named views of under-store prefixes."""


@dataset.command("add")
@api_command
@click.argument("name")
@click.argument("source")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="of fsspec's storage_options; secrets as env:NAME or file:PATH",
)
@click.option(
    "--replicas",
    default=1,
    show_default=True,
    type=click.IntRange(1, _LIMITS.replicas_max),
    help="copies of each block, in different slots",
)
@click.option(
    "--policy",
    default="keep",
    show_default=True,
    type=click.Choice([str(policy) for policy in Policy]),
    help="what may be evicted for its misses",
)
@click.option("--tier", default="mem", show_default=True, type=click.Choice([str(tier) for tier in Tier]))
@click.option(
    "--priority",
    default=0,
    show_default=True,
    type=click.IntRange(-_LIMITS.priority_max, _LIMITS.priority_max),
    help="higher comes first",
)
@click.option("--no-wait", is_flag=True, help="do not wait until the source is listed")
def add(
    client: Client,
    output: Output,
    *,
    name: str,
    source: str,
    options: tuple[str, ...],
    no_wait: bool,
    **fields: Any,
) -> None:
    """List SOURCE (any fsspec URL, or an absolute path) and call it NAME."""
    view = client.create_dataset(name, source, options=_parse_options(options), **fields)
    if not no_wait:
        view = wait_until_listed(client, output, view)
    if view["state"] == "FAILED" and view["version"] is None:
        _take_back(client, view)
    _show(output, view)


def _take_back(client: Client, view: dict[str, Any]) -> NoReturn:
    """Remove a dataset that never came to be, so that its name is free for the right source, and say why."""
    with contextlib.suppress(
        ApiError
    ):  # somebody else removed it, or the scheduler is gone: the reason still counts
        client.delete_dataset(view["name"])
    fail(
        f"dataset {view['name']} was not added: {view['error']}",
        "mend that, or name another source, and add it again",
    )


def wait_until_listed(client: Client, output: Output, view: dict[str, Any]) -> dict[str, Any]:
    """Return the dataset's view once its listing (the first, or a refresh) has ended, with a live count meanwhile."""
    said_ms, told = 0.0, ""
    while view["listing"] is not None:
        time.sleep(POLL_INTERVAL_S)
        view = client.dataset_info(view["name"])
        counted, message = view["listing"], view.get("message") or ""
        if message:
            if message.partition(":")[0] != told:
                told = message.partition(":")[0]
                output.say(f"{view['name']}: {message}")
            continue
        if counted and time.monotonic() - said_ms >= 1:
            said_ms = time.monotonic()
            output.say(
                f"listing {view['name']}: {counted['files']:,} files, {format_bytes(counted['bytes'])}"
            )
    return view


def _parse_options(options: tuple[str, ...]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    wrong = [key for key, equals, _ in pairs if not equals or not key]
    if wrong:
        raise click.UsageError(f"--option {wrong[0]!r}: write KEY=VALUE")
    return {key: value for key, _, value in pairs}


@dataset.command("ls")
@api_command
def list_datasets(client: Client, output: Output) -> None:
    """List all datasets."""
    datasets = client.datasets()
    if output.as_json:
        output.json({"datasets": datasets})
        return
    output.table(
        "",
        _COLUMNS,
        map(_row, datasets),
    )


def _row(view: dict[str, Any]) -> list[str]:
    files = "-" if view["files"] is None else f"{view['files']:,}"
    size = "-" if view["bytes"] is None else format_bytes(view["bytes"])
    cached = "-" if view["cached_ratio"] is None else f"{view['cached_ratio']:.0%}"
    actual = "-" if view["replicas_actual"] is None else view["replicas_actual"]
    replicas = f"{actual}/{view['replicas']}"
    return [
        view["name"],
        view["state"],
        files,
        size,
        cached,
        replicas,
        str(view["version"] or "-"),
        view["source"],
    ]


@dataset.command("show")
@api_command
@click.argument("name")
def show(client: Client, output: Output, *, name: str) -> None:
    """Show one dataset."""
    _show(output, client.dataset_info(name))


def _show(output: Output, view: dict[str, Any]) -> None:
    if output.as_json:
        output.json(view)
        return
    output.table("", _COLUMNS, [_row(view)])
    if view["error"]:
        output.say(f"error: {view['error']}")


@dataset.command("set")
@api_command
@click.argument("name")
@click.option(
    "--replicas",
    type=click.IntRange(1, _LIMITS.replicas_max),
    help="copies of each block, in different slots",
)
@click.option(
    "--policy",
    type=click.Choice([str(policy) for policy in Policy]),
    help="what may be evicted for its misses",
)
@click.option(
    "--priority",
    type=click.IntRange(-_LIMITS.priority_max, _LIMITS.priority_max),
    help="higher comes first",
)
def change(client: Client, output: Output, *, name: str, **fields: Any) -> None:
    """Change how a dataset is cached; what is not named stays as it is."""
    if all(value is None for value in fields.values()):
        raise click.UsageError("nothing to change: pass --replicas, --policy or --priority")
    _show(output, client.change_dataset(name, **fields))


@dataset.command("refresh")
@api_command
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="do not wait until the source is listed")
def refresh(client: Client, output: Output, *, name: str, no_wait: bool) -> None:
    """List the source again: a new version in which unchanged files stay cached."""
    view = client.refresh_dataset(name)
    if not no_wait:
        view = wait_until_listed(client, output, view)
    _show(output, view)
    if view["error"]:
        fail(
            f"dataset {name}: {view['error']}",
            "the version before it still stands" if view["version"] else "mend the source and refresh again",
        )


@dataset.command("rm")
@api_command
@click.argument("name")
def remove(client: Client, output: Output, *, name: str) -> None:
    """Forget a dataset and free its cache. The under store is never touched."""
    view = client.delete_dataset(name)
    output.result(view, f"dataset {name} removed; its source {view['source']} is untouched")
