"""Places as people write them: `zk://host:port,host:port/path`, and a journal's `file:DIR`."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass, field, replace

ZK_URL_RULE = "zk://[USER:SECRET@]HOST:PORT[,HOST:PORT...]/PATH"
JOURNAL_URL_RULE = f"file:DIR, or {ZK_URL_RULE}"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_ZK_PORT = 2181
ZK_HOSTS_MAX = 32
_SECRET_BYTES_MAX = 4096
_ESCAPES = "%2F and %40"


@dataclass(frozen=True, slots=True)
class FileUrl:
    """A journal in a local directory, an absolute path."""

    directory: str


@dataclass(frozen=True, slots=True)
class ZkUrl:
    """A path of a ZooKeeper ensemble: (host, port) each, and a path that begins with '/'.

    With a user, what a journal makes there is the user's alone (ZooKeeper's digest ACL).
    """

    hosts: tuple[tuple[str, int], ...]
    path: str
    user: str = ""
    secret: str = field(default="", repr=False)


def parse_journal_url(url: str) -> FileUrl | ZkUrl:
    """Return what `url` names.

    >>> parse_journal_url("file:/var/lib/stoker")
    FileUrl(directory='/var/lib/stoker')
    >>> parse_journal_url("zk://a:2181,b/stoker")
    ZkUrl(hosts=(('a', 2181), ('b', 2181)), path='/stoker', user='')

    :raises ValueError: neither form; the message shows both.
    """
    if "\0" not in url:
        if url.startswith("file:"):
            return _parse_file(url)
        if url.startswith("zk://"):
            return parse_zk_url(url)
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


def parse_zk_url(url: str) -> ZkUrl:
    """Return the place that a `zk://` URL names.

    :raises ValueError: it is none; no message holds a secret.
    """
    authority, slash, rest = url.removeprefix("zk://").partition("/")
    credentials, at, servers = authority.rpartition("@")
    shown = f"zk://{'...@' if at else ''}{servers}{slash}{rest}"  # without the secret
    if "@" in rest:
        raise ValueError(
            f"a zk:// URL with '@' behind its first '/': write '/' and '@' of a secret as {_ESCAPES}"
        )
    path = slash + rest.rstrip("/")
    if len(path) < 2 or "//" in path or any(part in (".", "..") for part in path.split("/")):
        raise ValueError(f"{shown!r} needs a path of its own in ZooKeeper: write {ZK_URL_RULE}")
    names = servers.split(",")
    if len(names) > ZK_HOSTS_MAX:
        raise ValueError(f"{len(names)} ZooKeeper servers; at most {ZK_HOSTS_MAX} are allowed")
    user, _, secret = credentials.partition(":")
    if at and not user:
        raise ValueError(f"{shown!r} has '@', but no user before it: write {ZK_URL_RULE}")
    hosts = tuple(_parse_host(name, shown) for name in names)
    return ZkUrl(hosts, path, urllib.parse.unquote(user), urllib.parse.unquote(secret))


def _parse_host(name: str, shown: str) -> tuple[str, int]:
    match = _HOST.fullmatch(name)
    port = int(match[2] or _ZK_PORT) if match else 0
    if not match or not 0 < port < 65536:
        raise ValueError(f"{name!r} in {shown!r} is not HOST:PORT: write {ZK_URL_RULE}")
    return match[1], port


def with_secret(place: ZkUrl, secret: str) -> ZkUrl:
    """Return `place` with the secret that `secret` tells: `env:NAME`, `file:PATH`, or the secret itself; "" changes nothing.

    What it tells is "USER:SECRET", or the secret alone where the URL has the user.

    :raises ValueError: nothing is there, or no user; no message holds the secret.
    """
    told = told_secret("ZooKeeper's secret", secret)
    if place.user:
        told = told.removeprefix(f"{place.user}:")
    elif told:
        user, colon, told = told.partition(":")
        if not (user and colon and told):
            raise ValueError("ZooKeeper's secret: USER:SECRET is wanted where the URL names no user")
        place = replace(place, user=user)
    if told:
        place = replace(place, secret=told)
    if (place.user or secret) and not (place.user and place.secret):
        raise ValueError(
            "ZooKeeper needs a user and a secret, or neither: write zk://USER@HOST... and a secret beside it"
        )
    return place


def told_secret(whose: str, secret: str) -> str:
    """Return what `secret` tells: `env:NAME`, `file:PATH`, or the secret itself. `whose`: how messages begin.

    :raises ValueError: nothing is there; the message holds no secret.
    """
    if secret.startswith("env:"):
        name = secret.removeprefix("env:")
        if not os.environ.get(name):
            raise ValueError(f"{whose}: the environment has no {name}")
        return os.environ[name]
    if secret.startswith("file:"):
        path = secret.removeprefix("file:")
        try:
            with open(path, encoding="utf-8") as file:
                told = file.read(_SECRET_BYTES_MAX).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{whose}: cannot read {path}: {error}") from error
        if not told:
            raise ValueError(f"{whose}: {path} is empty")
        return told
    return secret
