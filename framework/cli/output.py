"""How the CLI speaks: tables and colours on a terminal, plain text in a pipe, JSON when asked, errors in one line.

Owns no decision. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import functools
import json
import os
import select
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from stoker.client.errors import ApiError
from stoker.executor.units import format_bytes

EXIT_FAILED = 1
PLAIN_BAR_CHARACTERS = 24
PLAIN_LINE_INTERVAL_MS = 1_000


class Output:
    """Where a command's words go; `as_json`: one JSON document on stdout and nothing else there."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line for people; silent under --json."""
        if not self.as_json:
            self.console.print(text, markup=False)

    def json(self, value: Any) -> None:
        click.echo(json.dumps(value, indent=2, sort_keys=False))

    def result(self, value: Any, text: str) -> None:
        """Print what came of the command: `value` under --json, else the line `text`."""
        if self.as_json:
            self.json(value)
        else:
            self.say(text)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print a table on a terminal, tab-separated lines in a pipe; columns that end in '>' are right-aligned."""
        if self.as_json:
            return
        names = [c.rstrip(">") for c in columns]
        if not self.console.is_terminal:
            self._plain_table(title, names, [[str(c) for c in row] for row in rows])
            return
        table = Table(
            title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False
        )
        for column, name in zip(columns, names, strict=True):
            table.add_column(name, justify="right" if column.endswith(">") else "left", overflow="fold")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self.console.print(table)

    def _plain_table(self, title: str, names: list[str], rows: list[list[str]]) -> None:
        widths = [max([len(n), *(len(r[i]) for r in rows)]) for i, n in enumerate(names)]
        if title:
            click.echo(title)
        for row in [names, *rows]:
            click.echo("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


class JobProgress:
    """A progress bar with rate and ETA on a terminal; a line a second in a pipe; nothing under --json."""

    def __init__(self, output: Output, label: str) -> None:
        self._output = output
        self._label = label
        self._last_ms = -PLAIN_LINE_INTERVAL_MS
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if not output.as_json and output.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[detail]}"),
                console=output.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(label, total=1, detail="")

    def update(self, done: float, total: float, detail: str, *, now_ms: int, final: bool = False) -> None:
        """Show `done` of `total` (any unit, total may be 0: unknown) and `detail`; plain lines at most one a second."""
        share = min(1.0, done / total) if total else 0.0
        if self._bar:
            self._bar.update(self._task, completed=share, detail=detail)
            return
        if self._output.as_json or (now_ms - self._last_ms < PLAIN_LINE_INTERVAL_MS and not final):
            return
        self._last_ms = now_ms
        filled = round(share * PLAIN_BAR_CHARACTERS)
        bar = "#" * filled + "." * (PLAIN_BAR_CHARACTERS - filled)
        click.echo(f"{self._label} [{bar}] {share:4.0%} {detail}")

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def progress_detail(progress: dict[str, Any]) -> str:
    """Return `12.0 MiB of 90.0 MiB, 120 of 5,894 files, 3.1 MiB/s, ETA 0:25` from a job's progress."""
    parts = [f"{format_bytes(progress['bytes'] or 0)} of {format_bytes(progress['bytes_total'] or 0)}"]
    if progress.get("files_total"):
        parts.append(f"{progress['files'] or 0:,} of {progress['files_total']:,} files")
    if progress.get("rate_bytes_per_s"):
        parts.append(f"{format_bytes(progress['rate_bytes_per_s'])}/s")
    if progress.get("eta_seconds") is not None:
        minutes, seconds = divmod(round(progress["eta_seconds"]), 60)
        parts.append(f"ETA {minutes}:{seconds:02d}")
    return ", ".join(parts)


def count(number: int, what: str) -> str:
    """Return `1 file`, `2,000 files`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def fail(message: str, hint: str = "") -> NoReturn:
    """End with exit code 1 and one line on stderr: what was wrong, and the way out."""
    text = f"stoker: {message}" + (f" ({hint})" if hint else "")
    click.echo(" ".join(text.split()), err=True)
    sys.exit(EXIT_FAILED)


def reports_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the errors that users can act on into one line and exit code 1.

    Where standard output goes to a program that has read enough, such as `head`, it ends with 1 as well, and quietly.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            done = command(*args, **kwargs)
            sys.stdout.flush()
            return done
        except ApiError as error:
            fail(error.message, error.hint)
        except (OSError, ValueError) as error:
            if _is_reader_gone(error):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is for nobody
                sys.exit(EXIT_FAILED)
            fail(_words(error))

    return run


def _is_reader_gone(error: OSError | ValueError) -> bool:
    """Say whether it is our standard output, and no connection, that broke."""
    if not isinstance(error, BrokenPipeError):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # POLLERR is told unasked: a pipe that nobody reads
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _words(error: OSError | ValueError) -> str:
    """Return what the error says, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
