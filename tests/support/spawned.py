"""What a worker process of a test runs; a module of its own, so that spawn finds it by name."""

from __future__ import annotations

import random
from typing import Any


def read_everything(
    reader: Any, filesystem: Any, opened: Any, files: dict[str, bytes], seed: int, answers: Any
) -> None:
    """Read all files by every way there is; tell "right", or what was wrong."""
    try:
        answers.put(_check(reader, filesystem, opened, files, seed))
    except BaseException as error:
        answers.put(repr(error))
        raise


def _check(reader: Any, filesystem: Any, opened: Any, files: dict[str, bytes], seed: int) -> str:
    paths = list(files)
    random.Random(seed).shuffle(paths)
    first = opened.path.partition("/")[2]
    if opened.read_at(10, 100) != files[first][10:110]:
        return "read_at of an inherited or unpickled file"
    for path in paths:
        if reader.read(path) != files[path]:
            return f"read {path}"
        with filesystem.open(f"ds/{path}") as file:
            if file.read() != files[path]:
                return f"open {path}"
    if reader.read_many(paths) != [files[path] for path in paths]:
        return "read_many"
    if filesystem.cat([f"ds/{path}" for path in paths]) != {f"ds/{path}": files[path] for path in paths}:
        return "cat"
    return "right"
