"""`stoker journal`: look at the metadata journal, check it, save it, bring it back. Needs no scheduler.

All but `restore` only read, beside a running leader or when the whole cluster is dead.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import click

from stoker.executor.units import format_bytes
from stoker.framework.cli.journal_backup import AHEAD_MIN, back_up, new_file, restore_saved, seekable
from stoker.framework.cli.journal_checks import WORDS, Checks, verify_backup, verify_journal
from stoker.framework.cli.journal_state import State, all_words, describe, shorten
from stoker.framework.cli.output import EXIT_FAILED, count, fail, reports_errors
from stoker.zk.errors import Corrupt, JournalError
from stoker.zk.onlooker import Header, Onlooker, read_state
from stoker.zk.places import open_onlooker


@click.group()
def journal() -> None:
    """Look at the metadata journal, check it, back it up, restore it.

    Give the journal as the scheduler has it: --journal file:DIR, or --zk zk://HOST:PORT,HOST:PORT/PATH.
    """


def place_command(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where the journal is; `function` gets `url` and `secret` first. Errors become one line.

    `url` is empty where --check needs none.
    """

    @click.option("--journal", "journal_url", metavar="file:DIR", default="", help="a local journal")
    @click.option("--zk", "zk_url", metavar="zk://H:P,H:P/PATH", default="", help="a journal in ZooKeeper")
    @click.option("--zk-secret", default="", help="USER:SECRET of its ACL, as env:NAME or file:PATH")
    @functools.wraps(function)
    def run(journal_url: str, zk_url: str, zk_secret: str, **options: Any) -> None:
        url = journal_url or zk_url
        if (journal_url and zk_url) or not (url or options.get("check_only")):
            raise click.UsageError(
                "say where the journal is, by one of --journal file:DIR and --zk zk://HOST:PORT/PATH"
            )
        if url and not url.startswith("file:" if journal_url else "zk://"):
            raise click.UsageError("write --journal file:DIR or --zk zk://HOST:PORT[,HOST:PORT...]/PATH")
        logging.getLogger().addHandler(logging.NullHandler())  # what goes wrong is said in one line, by us
        try:
            reports_errors(function)(url, zk_secret, **options)
        except JournalError as error:
            fail(str(error))

    return run


@contextlib.contextmanager
def reading(url: str, secret: str) -> Iterator[Onlooker]:
    try:
        reader = open_onlooker(url, secret=secret)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        yield reader
    finally:
        reader.close()


# --- inspect


@journal.command()
@place_command
@click.option("--from", "from_index", type=click.IntRange(0), help="begin with this record")
@click.option("--last", type=click.IntRange(1), help="only so many records, the newest")
@click.option("--header", "header_only", is_flag=True, help="no records, only what the journal is")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def inspect(
    url: str, secret: str, from_index: int | None, last: int | None, header_only: bool, as_json: bool
) -> None:
    """Show what a journal is, and the records that it holds, in their order."""
    if from_index is not None and last is not None:
        raise click.UsageError("--from and --last exclude each other")
    with reading(url, secret) as reader:
        header = reader.header()
        if header_only and as_json:
            click.echo(json.dumps(_header_fields(header, _state_of(reader))))
            return
        if not as_json:
            _print_header(reader, header)
        if header_only:
            return
        if last is not None:
            from_index = max(header.next_index - last, 0)
        for batch in reader.log(from_index or 0):
            numbered = enumerate(batch.records, start=batch.first_index)
            lines = (_entry_line(index, batch.epoch, record, as_json=as_json) for index, record in numbered)
            click.echo("\n".join(lines))


def _state_of(reader: Onlooker) -> State:
    state = State()
    for part in read_state(reader):
        state.apply(part)
    return state


def _header_fields(header: Header, state: State) -> dict[str, Any]:
    return {
        "place": header.place,
        "epoch": header.term.epoch,
        "level": header.term.level,
        "owner": header.term.owner,
        **state.words(),
        "first_index": header.first_index,
        "next_index": header.next_index,
        "snapshots": list(header.snapshots),
        "parts": header.parts,
        "log_bytes": header.log_bytes,
        "torn_bytes": header.torn_bytes,
        "members": list(header.members),
    }


def _print_header(reader: Onlooker, header: Header) -> None:
    lines = {
        "journal": header.place,
        "epoch": f"{header.term.epoch}, level {header.term.level}",
        "owner": header.term.owner or "nobody has led it",
        "open now": ", ".join(header.members) or "nobody, as far as this machine can tell",
        "records": _records(header),
        "log": f"{format_bytes(header.log_bytes)} in {count(header.parts, header.part_name)}",
        "snapshots": ", ".join(f"before record {index:,}" for index in header.snapshots) or "none",
    }
    if header.torn_bytes:
        lines["unfinished"] = (
            f"{header.torn_bytes:,} bytes of a write that was never acknowledged, or is under way"
        )
    try:
        words = _state_of(reader).words()
        lines |= {name.replace("_", " "): f"{words[name]}" for name in WORDS}
    except JournalError as error:
        lines["damaged"] = str(error)
    for name, text in lines.items():
        click.echo(f"{name:<13}{text}")
    click.echo()


def _records(header: Header) -> str:
    if header.first_index < header.next_index:
        return f"{header.first_index:,} to {header.next_index - 1:,}"
    return f"none since the snapshot; {header.next_index:,} comes next" if header.next_index else "none"


def _entry_line(index: int, epoch: int, record: bytes, *, as_json: bool) -> str:
    kind, fields = describe(record, index)
    if as_json:
        return json.dumps({"index": index, "epoch": epoch, "kind": kind, "fields": fields})
    wall_ms = fields.pop("wall_ms", None)
    when = _time(wall_ms) if wall_ms else " " * len(_time(0))
    return f"{index:>10}  e{epoch:<5}  {when}  {kind:<20} {shorten(fields)}".rstrip()


def _time(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- verify


@journal.command()
@place_command
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def verify(url: str, secret: str, as_json: bool) -> None:
    """Check every checksum, index, record and blob of a journal; exit 0 if all is good, 1 if not."""
    with reading(url, secret) as reader:
        _report(verify_journal(reader), as_json=as_json)


def _report(checks: Checks, *, as_json: bool) -> None:
    if as_json:
        listed = [{"what": c.what, "ok": c.is_good, "detail": c.detail} for c in checks.done]
        click.echo(json.dumps({"ok": checks.is_good, "checks": listed}, indent=2))
    else:
        for check in checks.done:
            click.echo(f"{'good' if check.is_good else 'BAD':<6}{check.what:<12}{check.detail}")
    if not checks.is_good:
        sys.exit(EXIT_FAILED)


# --- backup


@journal.command()
@place_command
@click.argument("file", metavar="FILE")
def backup(url: str, secret: str, file: str) -> None:
    """Save a journal's state to FILE (- is standard output): all that `restore` needs to bring it back.

    The state is that of one moment, also beside a running leader. FILE is replaced at the end, wholly or not at all.
    """
    with reading(url, secret) as reader, new_file(file) as out:
        end, size = back_up(reader, out)
    words = all_words(dict(end.words), WORDS)
    name = "standard output" if file == "-" else file
    click.echo(
        f"{name}: {format_bytes(size)}, the state before record {end.next_index:,} ({words}), "
        f"{count(end.records, 'record')}, {count(end.blobs, 'blob')}",
        err=file == "-",
    )


# --- restore


@journal.command()
@place_command
@click.option(
    "--overwrite", is_flag=True, help="also where there is a journal (of which a local one is put aside)"
)
@click.option(
    "--check", "check_only", is_flag=True, help="only check FILE, which needs no journal; change nothing"
)
@click.argument("file", metavar="FILE")
def restore(url: str, secret: str, overwrite: bool, check_only: bool, file: str) -> None:
    """Bring the journal of a backup back, from FILE (- is standard input): the same cluster, datasets and jobs.

    The place must be empty, and no scheduler may lead there. FILE is checked whole before anything is written.
    """
    name = "standard input" if file == "-" else file
    with seekable(file) as opened:
        checks, saved = verify_backup(opened, name=name)
        if check_only or not checks.is_good or saved is None:
            _report(checks, as_json=False)
            return
        if not saved.end.next_index:
            raise Corrupt(f"{name} is the backup of an empty journal: there is nothing to restore")
        epoch = restore_saved(url, secret, saved, overwrite=overwrite)
        end = saved.end
    click.echo(
        f"{name}: restored the state before record {end.next_index:,} ({all_words(dict(end.words), WORDS)})"
    )
    click.echo(
        f"its epoch is now {epoch:,}, at least {AHEAD_MIN:,} above the newest that was known: so executors which have "
        "seen later ones than the backup obey the next leader; ids go on as far ahead, none is used twice"
    )
