"""Stoker: the cache that Mesos places next to training jobs.

This package imports nothing until a name is asked for: `import stoker` costs a training program no time, opens no
socket, and patches nothing.

>>> import stoker
>>> stoker.__version__.count(".")
2
"""

from __future__ import annotations

from typing import Any

__all__ = ["Client", "__version__", "open"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from stoker.client.api import Client

        return Client
    if name == "open":
        from stoker.client.api import open_path

        return open_path
    if name == "__version__":
        from importlib.metadata import version

        return version("stoker")
    raise AttributeError(f"module 'stoker' has no attribute {name!r}")
