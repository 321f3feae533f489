"""All benchmarks, side by side with their named peers: `make bench`, or `python bench/run.py hot tcp` for some.

Prints a table, and with --json the same as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform

import bounded
import fleet
import hot
import journal
import load
import offers
import replay
import takeover
import tcp

SECTIONS = {
    "hot": hot.run,
    "tcp": tcp.run,
    "load": load.run,
    "offers": offers.run,
    "journal": journal.run,
    "takeover": takeover.run,
    "bounded": bounded.run,
    "replay": replay.run,
    "fleet": fleet.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "sections", nargs="*", choices=[[], *SECTIONS], help="all of them where none is named"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = [result for name in given.sections or SECTIONS for result in SECTIONS[name]()]
    if given.json:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
        return
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.release()}; median of alternating rounds"
    )
    print(
        f"{'what':45} {'ours':>10} {'peer':>10} {'unit':10} {'ratio':>6} {'min':>6} {'max':>6}  {'bar':8} peer is"
    )
    for r in results:
        print(
            f"{r.what:45} {r.ours:10.2f} {r.theirs:10.2f} {r.unit:10} {r.ratio:6.2f} {r.ratio_min:6.2f} {r.ratio_max:6.2f}  {r.bar:8} {r.peer}"
        )


if __name__ == "__main__":
    main()
