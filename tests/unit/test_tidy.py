"""Rules of the code itself: which layer may import which, what a pure core may not touch, how long a file may be."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("client", "executor", "framework", "mesos", "zk")
SOURCES = sorted(p for d in PACKAGES for p in (ROOT / d).rglob("*.py")) + [ROOT / "stoker" / "__init__.py"]
LINES_MAX = 700

EXECUTOR_VALUES = {
    f"stoker.executor.{m}"
    for m in ("block", "manifest", "manifest_build", "manifest_format", "messages", "units", "wire")
}
# layer -> what of Stoker it may import, as module prefixes; a layer may always import itself
LAYERS = {
    "zk": set(),
    "mesos": {"stoker.zk.paths"},
    "executor": {"stoker.mesos.executor_driver", "stoker.mesos.errors"},
    "client": EXECUTOR_VALUES,
    "framework": EXECUTOR_VALUES | {"stoker.mesos", "stoker.zk"},
    "framework.cli": EXECUTOR_VALUES | {"stoker.mesos", "stoker.zk", "stoker.client", "stoker.framework"},
    "stoker": {"stoker.client.api"},
}
IMPURE = {
    "gevent", "kazoo", "logging", "multiprocessing", "os", "pymesos", "random", "requests", "selectors", "shutil", "signal",
    "socket", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip
CLIENT_NEVER = {"crc32c", "falcon", "gevent", "kazoo", "psutil", "pymesos"}
DATA_SERVER_NEVER = {"aiohttp", "fsspec", "pymesos", "s3fs", "stoker.mesos"}


def _imports(path: pathlib.Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _is_within(module: str, prefixes: set[str]) -> bool:
    return any(module == p or module.startswith(p + ".") for p in prefixes)


def _layer(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "framework.cli" if parts[:2] == ("framework", "cli") else parts[0]


def _name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_layer_imports_only_what_lies_below_it(path: pathlib.Path) -> None:
    layer = _layer(path)
    allowed = LAYERS[layer] | {f"stoker.{layer}"}
    wrong = [m for m in _imports(path) if m.startswith("stoker.") and not _is_within(m, allowed)]
    assert not wrong, f"{layer} may not import {wrong}"


@pytest.mark.parametrize("path", [p for p in SOURCES if "core" in p.parts], ids=_name)
def test_a_pure_core_touches_no_clock_chance_or_io(path: pathlib.Path) -> None:
    wrong = [m for m in _imports(path) if m.split(".")[0] in IMPURE]
    assert not wrong
    calls = [
        n.func.id
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    assert not {"open", "print", "input"} & set(calls)


@pytest.mark.parametrize("path", [p for p in SOURCES if "client" in p.parts], ids=_name)
def test_the_client_never_imports_what_would_patch_or_weigh_down_a_training_program(
    path: pathlib.Path,
) -> None:
    assert not [m for m in _imports(path) if m.split(".")[0] in CLIENT_NEVER]


def test_the_data_server_imports_no_under_store_and_no_driver() -> None:
    seen: set[pathlib.Path] = set()
    todo = [ROOT / "executor" / "server.py"]
    while todo:
        path = todo.pop()
        seen.add(path)
        for module in _imports(path):
            assert not _is_within(module, DATA_SERVER_NEVER), f"{path} imports {module}"
            for depth in (3, 4):
                below = ROOT.joinpath(*module.split(".")[1:depth]).with_suffix(".py")
                if module.startswith("stoker.") and below.exists() and below not in seen:
                    todo.append(below)


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_file_is_one_thing(path: pathlib.Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.name == "__init__.py" and "stoker" not in p.parts[-2:]], ids=_name
)
def test_package_init_files_import_nothing(path: pathlib.Path) -> None:
    """A gevent process patches first and imports after; an `__init__` that imports would come before."""
    assert not _imports(path)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=_name)
def test_tests_use_fakes_not_patches(path: pathlib.Path) -> None:
    assert not [m for m in _imports(path) if m.startswith("unittest.mock") or m == "mock"]
