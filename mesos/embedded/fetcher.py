"""The fetcher: brings the URIs of a command into its sandbox before it starts. A program of its own, one for each container.

It reads one JSON order from its input and ends with 0, or with 1 and what went wrong on its standard error, which is the
sandbox's. It imports the standard library only. It runs beside the agents, so a slow server holds nothing up but its own task.

A URI that is to be cached is fetched once an agent: a file of the cache is made under a lock of its own, whoever comes meanwhile
waits for it. The cache has a bound; the files that were not used for the longest time go first, and one that is larger than the
bound is not kept.
"""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import gzip
import hashlib
import json
import lzma
import os
import shutil
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

CONNECT_SECONDS_MAX = 60  # without a byte
CACHE_BYTES_MAX = 2 * 2**30

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class FetchError(Exception):
    """A URI cannot be fetched; the text says which one and why."""


def fetch_all(order: dict[str, Any]) -> None:
    """Fetch `uris` into `sandbox`; `cache_dir` and `cache_bytes_max` are the cache's.

    :raises FetchError: one of them failed.
    """
    sandbox = Path(order["sandbox"])
    for uri in order["uris"]:
        try:
            _fetch(uri, sandbox, Path(order["cache_dir"]), order["cache_bytes_max"])
        except (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError) as error:
            raise FetchError(f"Failed to fetch '{uri['value']}': {' '.join(str(error).split())}") from error


def _fetch(uri: dict[str, Any], sandbox: Path, cache_dir: Path, cache_bytes_max: int) -> None:
    value = uri["value"]
    name = urllib.parse.unquote(os.path.basename(urllib.parse.urlsplit(value).path))
    target = sandbox / _inside(uri.get("output_file") or name, value)
    target.parent.mkdir(parents=True, exist_ok=True)
    if uri.get("cache", False):
        with _cached(value, cache_dir, cache_bytes_max) as source:
            _deliver(uri, source, target, is_ours=False)
        return
    _download(value, target)
    _deliver(uri, target, target, is_ours=True)


def _inside(name: str, value: str) -> str:
    parts = name.split("/")
    if not name or name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise FetchError(f"Failed to fetch '{value}': {name!r} is no place inside the sandbox")
    return name


def _deliver(uri: dict[str, Any], source: Path, target: Path, *, is_ours: bool) -> None:
    """Put what was fetched where it is wanted: extracted, executable, or as it is."""
    executable = uri.get("executable", False)
    if uri.get("extract", True) and not executable and _extract(source, target):
        return
    if not is_ours:
        shutil.copyfile(source, target)
    if executable:
        target.chmod(target.stat().st_mode | 0o755)


def _extract(source: Path, target: Path) -> bool:
    """Extract an archive next to `target`, whose name says what it is; False if it is none."""
    name = target.name.lower()
    if name.endswith(_TARS):
        with tarfile.open(source) as archive:
            if hasattr(tarfile, "tar_filter"):
                archive.extractall(target.parent, filter="tar")
            else:  # Python before 3.11.4, as Debian 12 has it
                archive.extractall(target.parent, _members_inside(archive, target.parent))
        return True
    if name.endswith(".zip"):
        with zipfile.ZipFile(source) as packed:
            for member in packed.infolist():
                path = Path(packed.extract(member, target.parent))
                mode = member.external_attr >> 16 & 0o777
                if mode and not member.is_dir():
                    path.chmod(mode)
        return True
    opener = _PACKED.get(target.suffix.lower())
    if opener is None:
        return False
    with opener(source) as reader, open(target.with_suffix(""), "wb") as writer:
        shutil.copyfileobj(reader, writer)
    return True


def _members_inside(archive: tarfile.TarFile, directory: Path) -> Iterator[tarfile.TarInfo]:
    """Yield members one by one, each looked at when those before it are there: a link among them may lead outside."""
    top = directory.resolve()
    for member in archive:
        member.name = member.name.lstrip("/")
        if not (top / member.name).resolve().is_relative_to(top):
            raise tarfile.TarError(f"{member.name!r} is no place inside the sandbox")
        member.mode &= 0o755
        yield member


def _download(value: str, target: Path) -> None:
    """Bring one URI into a file: whole, or not at all under its name."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}.part")
    scheme = urllib.parse.urlsplit(value).scheme
    try:
        with open(fresh, "wb") as writer:
            if scheme in ("http", "https", "ftp"):
                _copy_url(value, writer)
            elif scheme == "file" or value.startswith("/"):
                path = urllib.parse.unquote(urllib.parse.urlsplit(value).path) if scheme else value
                with open(path, "rb") as reader:
                    shutil.copyfileobj(reader, writer)
            else:
                raise FetchError(f"Failed to fetch '{value}': not http, https, ftp, file or an absolute path")
        os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)


def _copy_url(value: str, writer: IO[bytes]) -> None:
    try:
        with urllib.request.urlopen(value, timeout=CONNECT_SECONDS_MAX) as reader:
            announced = reader.headers.get("Content-Length")
            shutil.copyfileobj(reader, writer)
    except urllib.error.HTTPError as error:
        raise FetchError(
            f"Failed to fetch '{value}': the server answers {error.code} {error.reason}"
        ) from error
    if announced is not None and announced.isdigit() and writer.tell() != int(announced):
        raise FetchError(f"Failed to fetch '{value}': {writer.tell()} of {announced} bytes came")


@contextlib.contextmanager
def _cached(value: str, cache_dir: Path, bytes_max: int) -> Iterator[Path]:
    """Yield the cache's file of a URI, which stays while it is used."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    path = cache_dir / hashlib.sha256(value.encode()).hexdigest()
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            for part in cache_dir.glob(f".{path.name}.*.part"):  # of a fetcher that was killed
                part.unlink()
            _download(value, path)
        os.utime(path)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield path
    _evict(cache_dir, bytes_max)


def _evict(cache_dir: Path, bytes_max: int) -> None:
    """Remove files that nobody uses until the cache keeps its bound, the longest unused first."""
    with open(cache_dir / "lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        files = [
            (path.stat(), path) for path in cache_dir.iterdir() if not path.suffix and path.name != "lock"
        ]
        total = sum(status.st_size for status, _ in files)
        for status, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if total <= bytes_max:
                return
            with open(path.with_suffix(".lock"), "w") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                total -= status.st_size


def main() -> int:
    try:
        fetch_all(json.load(sys.stdin))
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
