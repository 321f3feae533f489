"""Where a journal is, as people write it: `file:DIR`, or `zk://host:port,host:port/path`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

JOURNAL_URL_RULE = "file:DIR, or zk://HOST:PORT[,HOST:PORT...]/PATH"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_ZK_PORT = 2181
ZK_HOSTS_MAX = 32


@dataclass(frozen=True, slots=True)
class FileUrl:
    """A journal in a local directory, an absolute path."""

    directory: str


@dataclass(frozen=True, slots=True)
class ZkUrl:
    """A journal under one path of a ZooKeeper ensemble: (host, port) each, and a path that begins with '/'."""

    hosts: tuple[tuple[str, int], ...]
    path: str


def parse_journal_url(url: str) -> FileUrl | ZkUrl:
    """Return what `url` names.

    >>> parse_journal_url("file:/var/lib/stoker")
    FileUrl(directory='/var/lib/stoker')
    >>> parse_journal_url("zk://a:2181,b/stoker")
    ZkUrl(hosts=(('a', 2181), ('b', 2181)), path='/stoker')

    :raises ValueError: neither form; the message shows both.
    """
    if "\0" not in url:
        if url.startswith("file:"):
            return _parse_file(url)
        if url.startswith("zk://"):
            return _parse_zk(url)
    raise ValueError(f"{url!r} is not the place of a journal: write {JOURNAL_URL_RULE}")


def _parse_file(url: str) -> FileUrl:
    path = url.removeprefix("file:")
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise ValueError(f"{url!r} names the host {host!r}: a file journal is local, write file:/DIR")
        path = slash + rest
    if not path:
        raise ValueError(f"{url!r} names no directory: write {JOURNAL_URL_RULE}")
    return FileUrl(os.path.abspath(path))


def _parse_zk(url: str) -> ZkUrl:
    authority, slash, rest = url.removeprefix("zk://").partition("/")
    path = slash + rest.rstrip("/")
    if len(path) < 2 or "//" in path or any(part in (".", "..") for part in path.split("/")):
        raise ValueError(f"{url!r} needs a path of its own in ZooKeeper: write {JOURNAL_URL_RULE}")
    if "@" in authority:
        raise ValueError(f"{url.rpartition('@')[2]!r} has a user before it: secrets do not belong into a URL")
    names = authority.split(",")
    if len(names) > ZK_HOSTS_MAX:
        raise ValueError(f"{len(names)} ZooKeeper servers; at most {ZK_HOSTS_MAX} are allowed")
    return ZkUrl(tuple(_parse_host(name, url) for name in names), path)


def _parse_host(name: str, url: str) -> tuple[str, int]:
    match = _HOST.fullmatch(name)
    port = int(match[2] or _ZK_PORT) if match else 0
    if not match or not 0 < port < 65536:
        raise ValueError(f"{name!r} in {url!r} is not HOST:PORT: write {JOURNAL_URL_RULE}")
    return match[1], port
