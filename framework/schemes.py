"""Which URL schemes a dataset's source may have: what fsspec knows here. Asked of a child process, once, at the start.

No under-store library may be imported in the scheduler's own process (it is patched by gevent), and a scheme that nobody
can open should be refused before anything is journaled.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys

ANSWER_TIMEOUT_S = 30

log = logging.getLogger(__name__)


def known_schemes(python: str = sys.executable) -> frozenset[str]:
    """Return the schemes that the lister can open; empty (nothing is checked then) where it could not say."""
    command = [python, "-m", "stoker.executor.lister", "--schemes"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=ANSWER_TIMEOUT_S, check=True)
        return frozenset(str(scheme) for scheme in json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("schemes of sources are not checked: the lister did not name them: %s", error)
        return frozenset()
