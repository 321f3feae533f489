"""From environment to a running keeper: what `python -m stoker.executor` does once gevent has patched the process."""

from __future__ import annotations

import os
import sys

from stoker.executor.config import HELP, load
from stoker.executor.errors import ConfigError
from stoker.executor.process import start_logging


def main(arguments: list[str]) -> int:
    """Return the exit code: 0 ended as told, 1 failed, 2 wrong usage or environment."""
    if arguments in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    if arguments:
        print(f"stoker.executor takes no arguments, got {arguments[0]!r}: see --help", file=sys.stderr)
        return 2
    if not os.environ.get("MESOS_AGENT_ENDPOINT"):
        print(
            "stoker.executor is started by a Mesos agent, for a Stoker scheduler: see --help", file=sys.stderr
        )
        return 2
    from stoker.executor.keeper import Keeper
    from stoker.mesos.executor_driver import ExecutorDriver, read_settings

    try:
        config = load(os.environ)
        settings = read_settings(os.environ)
    except (ConfigError, ValueError) as error:
        print(f"stoker.executor: {error}", file=sys.stderr)
        return 2
    start_logging("keeper")
    code = Keeper(config, lambda keeper: ExecutorDriver(keeper, settings)).run()
    sys.stderr.flush()
    os._exit(code)  # greenlets and the driver's connections hold nothing that must outlive us
