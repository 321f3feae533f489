"""What became of each row of a scenario: passed, failed or skipped, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

OUTCOMES = ("passed", "failed", "skipped")
FAILURES_MAX = 20  # told of one row


@dataclass
class Row:
    transcript: str
    line: int
    title: str
    outcome: str = "passed"
    why: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        why = "".join(f"\n      {text}" for text in self.why)
        return f"{self.outcome:7} {self.transcript}:{self.line} {self.title}{why}"


class Rows:
    """The rows of one run, the last of which is being played."""

    def __init__(self, transcript: str) -> None:
        self.transcript = transcript
        self.rows: list[Row] = []

    def begin(self, line: int, title: str) -> None:
        self.rows.append(Row(self.transcript, line, title))

    def fail(self, why: str) -> None:
        self._end(self.rows[-1], "failed", why)

    def fail_at(self, line: int, why: str) -> None:
        """Fail the row that was being played at `line`."""
        earlier = [row for row in self.rows if row.line <= line + 1]
        self._end(earlier[-1] if earlier else self.rows[0], "failed", why)

    def skip(self, why: str) -> None:
        if self.rows[-1].outcome == "passed":
            self._end(self.rows[-1], "skipped", why)

    def abandon(self, titles: list[tuple[int, str]], why: str, *, skipped: bool = False) -> None:
        """Tell of the rows that were not played."""
        for line, title in titles:
            self.begin(line, title)
            self._end(self.rows[-1], "skipped" if skipped else "failed", why)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.outcome == "failed"]

    @staticmethod
    def _end(row: Row, outcome: str, why: str) -> None:
        row.outcome = outcome
        if len(row.why) < FAILURES_MAX and why not in row.why:
            row.why.append(why)


ROW = "mesos-row"


def report_lines(rows: list[dict[str, Any]], *, whole: bool, summary: bool = False) -> list[str]:
    """Return the report as text: every row, or only those that did not pass; the sums of each transcript; the sums of all."""
    counts: Counter[str] = Counter()
    of_transcripts: dict[str, Counter[str]] = {}
    lines = []
    for fields in sorted(rows, key=lambda item: (item["transcript"], item["line"])):
        row = Row(**fields)
        counts[row.outcome] += 1
        of_transcripts.setdefault(row.transcript, Counter())[row.outcome] += 1
        if whole or row.outcome != "passed":
            lines.append(str(row))
    sums = f"{len(rows)} rows of {len(of_transcripts)} transcripts: {_sums(counts)}"
    return [*lines, *(_summary(of_transcripts) if summary else ()), sums]


def _summary(of_transcripts: dict[str, Counter[str]]) -> list[str]:
    """Return the sums of each transcript."""
    width = max(map(len, of_transcripts), default=0)
    return [
        f"{name:{width}}  {counts.total():3} rows: {_sums(counts)}" for name, counts in of_transcripts.items()
    ]


def _sums(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
