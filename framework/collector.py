"""The garbage collector, kept out of work that makes many values of which none is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Let no collection begin meanwhile: it would look at all that was made so far, again and again.

    What is freed by its reference count still is. It may be used in several threads at once: whoever ends last, the
    collector runs again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
