"""The listening sockets of a data server: TCP, a path in a short host directory, an abstract name.

The path is not in the Mesos sandbox, whose own path is longer than a socket address may be. A path socket outlives a
killed process, so whoever starts cleans up: a socket that refuses connections belongs to nobody. A new one is made
under another name and renamed once it listens, so it is never taken for a dead one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

SOCKET_PATH_BYTES_MAX = 107  # sun_path, with its closing NUL
SUFFIX = ".sock"
_NEW_SUFFIX = ".new"
_NEW_AGE_MAX_S = 60  # a socket that was never renamed is the trace of a start that failed
_BACKLOG = 1024


def socket_directory(configured: str | None) -> str:
    """Return `configured`, or the default for this user: /tmp/stoker-<uid>."""
    return configured or f"/tmp/stoker-{os.getuid()}"


def socket_name(cluster: bytes, slot_id: int, launch_id: int) -> str:
    """Return the name that a launch's sockets go by, path and abstract alike."""
    return f"stoker-{cluster.hex()[:8]}-s{slot_id}-l{launch_id}"


def prepare_directory(path: str) -> None:
    """Make the socket directory and remove sockets of dead executors from it.

    Any user may look into the default one; the mode of another is the operator's.

    :raises OSError: it is not a directory that only this user may write to, or cannot be made; the text says what to do.
    """
    is_new = False
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)
        is_new = True
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(
            f"{path} is not a directory of user {os.getuid()}: remove it, or set STOKER_SOCKET_DIR to another directory"
        )
    if is_new or path == socket_directory(None):
        os.chmod(path, 0o755)  # whatever the umask was, or a client of this user that was here first
    elif found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise OSError(
            f"other users may replace the sockets in {path}: chmod go-w, or set STOKER_SOCKET_DIR to another directory"
        )
    clean_directory(path)


def clean_directory(path: str) -> list[str]:
    """Unlink the sockets in `path` that nobody listens on; return their names."""
    removed = []
    for entry in sorted(os.listdir(path)):
        full = os.path.join(path, entry)
        if (entry.endswith(SUFFIX) and _is_dead(full)) or (entry.endswith(_NEW_SUFFIX) and _is_old(full)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(full)
                removed.append(entry)
    return removed


def listen_tcp(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket; port 0: any free one. :raises OSError: the text names host and port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return sock


def loopback_trouble(host: str, schedulers: Sequence[str]) -> str:
    """Return what is wrong with an agent's name that is a loopback address here, though a scheduler's url is none; else nothing."""
    try:
        own = _address(host)
        others = [_address(urlsplit(url).hostname or "") for url in schedulers]
    except OSError:
        return ""  # whoever needs the name says so
    if not own.is_loopback or all(address.is_loopback for address in others):
        return ""
    return (
        f"{host} is {own} here, so no other machine reaches this executor: have the agent's --hostname resolve to its "
        "address in the network on the agent itself too (a line of /etc/hosts such as 127.0.1.1 is in the way)"
    )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return ipaddress.ip_address(str(found[0][4][0]).partition("%")[0])


def listen_path(path: str) -> socket.socket:
    """Return a socket that listens at `path`, whatever dead socket was there; any user may connect.

    :raises OSError: it cannot be made there.
    """
    new = path.removesuffix(SUFFIX) + _NEW_SUFFIX
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(new)
        os.chmod(new, 0o666)
        sock.listen(_BACKLOG)
        os.rename(new, path)
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen at {path}: {error}") from error
    return sock


def listen_abstract(name: str) -> socket.socket:
    """Return a socket that listens at the abstract `name` (given without its NUL). :raises OSError: it is taken."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(b"\0" + name.encode())
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen at the abstract address {name}: {error}") from error
    return sock


def _is_dead(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a live one with a full backlog answers EAGAIN, and lives
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _is_old(path: str) -> bool:
    try:
        return time.time() - os.lstat(path).st_mtime > _NEW_AGE_MAX_S
    except FileNotFoundError:
        return False
