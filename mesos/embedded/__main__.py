"""`python -m stoker.mesos.embedded`."""

from __future__ import annotations

import sys

from stoker.mesos.embedded.main import main

if __name__ == "__main__":
    sys.exit(main())
