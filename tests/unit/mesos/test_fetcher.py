"""Archives of the fetcher: extracted inside the sandbox or not at all, with every Python that agents have."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.mesos.embedded.fetcher import FetchError, _members_inside, fetch_all


def fetch(archive: Path, sandbox: Path) -> None:
    fetch_all(
        {"sandbox": sandbox, "uris": [{"value": str(archive)}], "cache_dir": sandbox, "cache_bytes_max": 0}
    )


def extract(archive: Path, sandbox: Path) -> None:
    """As with a Python that has no filters."""
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(sandbox, _members_inside(opened, sandbox))
    except tarfile.TarError as error:
        raise FetchError(str(error)) from error


def pack(path: Path, *members: tuple[str, str | bytes]) -> Path:
    """Write an archive of files (bytes) and symbolic links (str)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o6777
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


HOW = pytest.mark.parametrize("bring", [fetch, extract])


@HOW
def test_an_archive_is_extracted_without_rights_that_nobody_should_have(
    tmp_path: Path, bring: Callable[[Path, Path], None]
) -> None:
    sandbox = tmp_path / "sandbox"
    sandbox.mkdir()
    members = ("inner/deep", b"deep"), ("/from-the-top", b"top"), ("link", "inner/deep")
    bring(pack(tmp_path / "many.tgz", *members), sandbox)
    assert (sandbox / "link").read_bytes() == b"deep" and (sandbox / "from-the-top").read_bytes() == b"top"
    assert (sandbox / "inner" / "deep").stat().st_mode & 0o7777 == 0o755


@HOW
@pytest.mark.parametrize(
    "members",
    [
        [("../outside", b"bad")],
        [("inner/../../outside", b"bad")],
        [("way", ".."), ("way/outside", b"bad")],
    ],
)
def test_nothing_of_an_archive_gets_outside(
    tmp_path: Path, bring: Callable[[Path, Path], None], members: list[tuple[str, str | bytes]]
) -> None:
    sandbox = tmp_path / "sandbox"
    sandbox.mkdir()
    with pytest.raises(FetchError, match="outside"):
        bring(pack(tmp_path / "bad.tgz", *members), sandbox)
    assert not (tmp_path / "outside").exists()
