"""Where the leading master is: at the address that the operator gave, or where the masters say in ZooKeeper.

Rule: whatever finds masters tells a driver through `change_master(address or None)`, once at the start and again at
each change. Opens no socket: what does is in zookeeper_detector.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from stoker.zk.paths import parse_zk_url

MASTER_PORT_DEFAULT = 5050

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_.])?")


class Address(NamedTuple):
    """A host (name, IPv4 or IPv6 address without brackets) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, port_default: int | None = MASTER_PORT_DEFAULT) -> Address:
    """Parse `host`, `host:port`, `[ipv6]:port`, `[ipv6]` or a bare IPv6 address.

    >>> parse_address("master.example"), str(parse_address("[::1]:5051"))
    (Address(host='master.example', port=5050), '[::1]:5051')

    :raises ValueError: it is none of these; the text says what is expected.
    """
    if _is_ipv6(text):
        host, port_text = text, ""
    elif text.startswith("["):
        host, bracket, port_text = text[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (port_text and not port_text.startswith(":")):
            raise _wrong(text, "no IPv6 address in brackets")
        port_text = port_text[1:] if port_text != ":" else ":"
    else:
        host, colon, port_text = text.partition(":")
        port_text = ":" if colon and not port_text else port_text
        if "://" in text:
            raise _wrong(text, f"the scheme {text.partition('://')[0]!r} is not known")
        if not _HOST.fullmatch(host):
            raise _wrong(text, "no host")
    return Address(host, _port(text, port_text, port_default))


def address_in_location(location: str, asked: Address, *, scheme: str = "http") -> Address:
    """Return the address that a redirect names; only host and port count, never its path.

    Mesos sends `//host:port/path` without a scheme, and also `/path` when it means itself. `scheme` is what we speak.

    :raises ValueError: it names no address of that scheme.
    """
    parts = urlsplit(location)
    if parts.scheme not in ("", scheme):
        raise ValueError(f"redirected to {location!r}: only {scheme} is spoken to this master")
    if not parts.netloc:
        return asked
    return parse_address(parts.netloc)


class Detector(Protocol):
    """What finds the leading master and tells when it is another one."""

    @property
    def reason(self) -> str:
        """Return why no master is known now; "": one is."""
        ...

    def start(self, change_master: Callable[[str | None], None]) -> None: ...

    def stop(self) -> None: ...


class FixedDetector:
    """Tell a driver the one master there is."""

    reason = ""

    def __init__(self, master: Address) -> None:
        self._master = master

    def start(self, change_master: Callable[[str | None], None]) -> None:
        """Call `change_master` with the address, at once and only now."""
        change_master(str(self._master))

    def stop(self) -> None:
        """Tell no more."""


def check_master(master_uri: str) -> None:
    """:raises ValueError: it is neither HOST:PORT nor zk://HOST:PORT,.../PATH; the text says what is expected."""
    if master_uri.startswith("zk://"):
        parse_zk_url(master_uri)
    else:
        parse_address(master_uri)


def without_credentials(master_uri: str) -> str:
    """Return `master_uri` as it may be told to others.

    >>> without_credentials("zk://user:secret@h:2181/mesos")
    'zk://h:2181/mesos'
    """
    scheme, mark, rest = master_uri.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}" if mark else master_uri


def detector_for(master_uri: str, *, by_name: bool = False) -> Detector:
    """Return what finds the master that `master_uri` names, HOST:PORT or zk://HOST:PORT,.../PATH.

    `by_name`: masters found in ZooKeeper are asked by their hosts' names (as TLS wants), not by their IP addresses.

    :raises ValueError: it is neither.
    """
    if not master_uri.startswith("zk://"):
        return FixedDetector(parse_address(master_uri))
    from stoker.mesos.zookeeper_detector import ZooKeeperDetector  # kazoo only where it is asked for

    return ZooKeeperDetector(parse_zk_url(master_uri), by_name=by_name)


def locate_master(master_uri: str, *, by_name: bool = False) -> Address:
    """Return where the leading master is now. For short questions: a driver has a `Detector`.

    :raises ValueError: as `detector_for`. :raises CallFailed: nobody leads, or it cannot be found out now.
    """
    if not master_uri.startswith("zk://"):
        return parse_address(master_uri)
    from stoker.mesos.zookeeper_detector import find_master

    return find_master(parse_zk_url(master_uri), by_name=by_name)


def _port(text: str, port_text: str, port_default: int | None) -> int:
    if not port_text:
        if port_default is None:
            raise _wrong(text, "no port")
        return port_default
    if not (port_text.isascii() and port_text.isdigit() and 1 <= int(port_text[:6]) <= 65535):
        raise _wrong(text, "the port is not 1..65535")
    return int(port_text)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(
        f"{text!r} is no address: {why}; expected HOST:PORT, such as master.example:5050 or [::1]:5050"
    )
