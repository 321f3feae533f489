"""`python -m stoker.executor`: the keeper of an executor. Patches the standard library for gevent before anything else."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402

from stoker.executor.start import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
