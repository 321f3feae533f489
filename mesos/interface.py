"""pymesos' names that Stoker uses, imported without what importing pymesos does to a process.

pymesos replaces the process' SIGINT handler when it is imported (which also raises ValueError in any thread but the
main one), and adds a handler to its logger. Neither survives this module: Ctrl-C and logging stay as they were, and
the first import may happen in any thread or greenlet. Nothing else of Stoker imports pymesos.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import ModuleType
from typing import Any

_import_lock = threading.Lock()


def _import_pymesos() -> ModuleType:
    install = signal.signal

    def refuse_pymesos(number: int, handler: Any) -> Any:
        if getattr(handler, "__module__", None) == "pymesos.process":
            return signal.getsignal(number)
        return install(number, handler)

    logger = logging.getLogger("pymesos")
    handlers, level = list(logger.handlers), logger.level
    with _import_lock:
        signal.signal = refuse_pymesos  # type: ignore[assignment]
        try:
            import pymesos
        finally:
            signal.signal = install
    logger.handlers[:] = handlers
    logger.setLevel(level)
    return pymesos  # type: ignore[no-any-return]


_pymesos = _import_pymesos()

Scheduler = _pymesos.Scheduler
Executor = _pymesos.Executor
PymesosSchedulerDriver = _pymesos.MesosSchedulerDriver
encode_data = _pymesos.encode_data
decode_data = _pymesos.decode_data
