"""Bundles: which agent gets which, what its shell does with what it got, and that every scheduler serves them."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
from typing import Any

import falcon.testing
import pytest

from stoker.framework.api import Api
from stoker.framework.bundles import (
    SANDBOX_NAME,
    Bundles,
    bundle_command,
    open_bundles,
    read_bundle,
    uri,
)
from stoker.framework.errors import ConfigError, NotLeading
from stoker.framework.metrics import Metrics
from stoker.framework.web import make_app

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOBODY = 65_534
SCRIPT = '#!/bin/sh\necho "root=$PEX_ROOT"\n'


def given(tmp_path: pathlib.Path, name: str = "b.pex", text: str = SCRIPT) -> str:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def one(path: str) -> Bundles:
    return open_bundles([path])


def test_an_agent_gets_the_bundle_of_its_attribute_else_the_common_one(tmp_path: pathlib.Path) -> None:
    arm, common = given(tmp_path, "arm.pex", "#!arm"), given(tmp_path, "x86.pex", "#!x86")
    bundles = open_bundles([common, f"arch:aarch64={arm}"])
    chosen = bundles.choose((("rack", "r1"), ("arch", "aarch64")))
    assert chosen is not None and chosen.path == arm and chosen.size == 5
    for attributes in ((), (("arch", "x86_64"),)):
        other = bundles.choose(attributes)
        assert other is not None and other.path == common
    assert open_bundles([f"arch:aarch64={arm}"]).choose(()) is None
    assert not open_bundles([])


def test_a_bundle_is_named_by_its_bytes(tmp_path: pathlib.Path) -> None:
    bundles = one(given(tmp_path))
    bundle = bundles.choose(())
    assert bundle is not None
    assert bundle.digest == hashlib.sha256(SCRIPT.encode()).hexdigest()
    assert bundles.find(bundle.digest) is bundle and bundles.find("0" * 64) is None
    assert b"".join(read_bundle(bundle)) == SCRIPT.encode()
    assert uri(bundle, "http://h:1")["value"] == f"http://h:1/v1/bundles/{bundle.digest}"


def test_a_bundle_that_was_cut_is_never_served_as_whole(tmp_path: pathlib.Path) -> None:
    bundle = one(given(tmp_path)).choose(())
    assert bundle is not None
    os.truncate(bundle.path, 3)
    with pytest.raises(OSError, match="shorter"):
        list(read_bundle(bundle))


def test_what_is_no_bundle_is_said_all_at_once(tmp_path: pathlib.Path) -> None:
    empty = given(tmp_path, "empty.pex", "")
    good, text = given(tmp_path), given(tmp_path, "notes.txt", "user:secret")
    with pytest.raises(ConfigError) as caught:
        open_bundles([str(tmp_path / "none.pex"), f"rack:r1={empty}", good, good, f"rack:r2={text}"])
    missing, nothing, twice, other = caught.value.problems
    assert (
        "none.pex: No such file" in missing and "0 bytes" in nothing and "another one for all agents" in twice
    )
    assert "notes.txt" in other and "`stoker bundle` makes one" in other


def test_every_scheduler_serves_its_bundles_leading_or_not(tmp_path: pathlib.Path) -> None:
    bundles = one(given(tmp_path))
    bundle = bundles.choose(())
    assert bundle is not None
    metrics = Metrics()
    api = Api(no_leader, allow_sources=("",), metrics=metrics, document={}, bundles=bundles)
    client = falcon.testing.TestClient(make_app(api, metrics, check_leads=api.check_leads))
    path = f"/v1/bundles/{bundle.digest}"
    got = client.simulate_get(path)
    assert (got.status_code, got.content) == (200, SCRIPT.encode())
    asked = client.simulate_head(path)  # as the fetcher does before it makes room in its cache
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-length"] == got.headers["content-length"] == str(len(SCRIPT))
    missing = client.simulate_get(f"/v1/bundles/{'0' * 64}")
    assert missing.status_code == 404 and "--bundle" in missing.json["error"]["hint"]


def no_leader() -> Any:
    raise NotLeading("nobody leads")


def run(bundle_path: str, sandbox: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    bundle = one(bundle_path).choose(())
    assert bundle is not None
    return subprocess.run(
        ["/bin/sh", "-c", bundle_command(bundle)],
        cwd=sandbox,
        env={"PATH": PATH, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def sandbox_with(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    sandbox = tmp_path / "sandbox"
    sandbox.mkdir()
    given(sandbox, SANDBOX_NAME, text)
    return sandbox


def test_the_shell_checks_and_starts_what_was_fetched(tmp_path: pathlib.Path) -> None:
    sandbox, temporary = sandbox_with(tmp_path, SCRIPT), tmp_path / "tmp"
    temporary.mkdir()
    result = run(given(tmp_path), sandbox, TMPDIR=str(temporary))
    shared = temporary / f"stoker-bundles-{os.getuid()}"
    assert (result.returncode, result.stdout) == (0, f"root={shared}\n")
    assert shared.stat().st_mode & 0o777 == 0o700
    again = run(given(tmp_path), sandbox, TMPDIR=str(temporary))
    assert again.stdout == f"root={shared}\n"


def test_other_bytes_than_were_served_are_not_started(tmp_path: pathlib.Path) -> None:
    sandbox = sandbox_with(tmp_path, SCRIPT + "# changed on the way\n")
    result = run(given(tmp_path), sandbox, TMPDIR=str(tmp_path))
    assert result.returncode == 1 and "not what the scheduler serves" in result.stderr and not result.stdout


@pytest.mark.parametrize("trap", ["link", "another's directory"])
def test_a_directory_that_another_user_may_have_laid_is_not_used(tmp_path: pathlib.Path, trap: str) -> None:
    sandbox = sandbox_with(tmp_path, SCRIPT)
    there = tmp_path / f"stoker-bundles-{os.getuid()}"
    if trap == "link":
        (tmp_path / "elsewhere").mkdir()
        there.symlink_to(tmp_path / "elsewhere")
    else:
        if os.getuid() != 0:
            pytest.skip("only root can lay another user's directory")
        there.mkdir()
        os.chown(there, NOBODY, -1)
    result = run(given(tmp_path), sandbox, TMPDIR=str(tmp_path))
    assert result.stdout == f"root={sandbox}/.bundle\n"
    assert "cannot be used: the bundle is unpacked into the sandbox" in result.stderr
