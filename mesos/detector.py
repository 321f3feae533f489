"""Where the leading master is: the address that the operator gave.

Rule: whatever finds masters tells a driver through `change_master(address or None)`, once at the start and again at
each change, so that other ways of finding one fit in beside the fixed address. Opens no socket.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

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


def address_in_location(location: str, asked: Address) -> Address:
    """Return the address that a redirect names; only host and port count, never its path.

    Mesos sends `//host:port/path` without a scheme, and also `/path` when it means itself.

    :raises ValueError: it names no plain-HTTP address.
    """
    parts = urlsplit(location)
    if parts.scheme not in ("", "http"):
        raise ValueError(f"redirected to {location!r}: only plain http is spoken")
    if not parts.netloc:
        return asked
    return parse_address(parts.netloc)


class Detector(Protocol):
    """What finds the leading master and tells when it is another one."""

    def start(self, change_master: Callable[[str | None], None]) -> None: ...

    def stop(self) -> None: ...


class FixedDetector:
    """Tell a driver the one master there is."""

    def __init__(self, master: Address) -> None:
        self._master = master

    def start(self, change_master: Callable[[str | None], None]) -> None:
        """Call `change_master` with the address, at once and only now."""
        change_master(str(self._master))

    def stop(self) -> None:
        """Tell no more."""


def detector_for(master_uri: str) -> Detector:
    """Return what finds the master that `master_uri` names.

    :raises ValueError: it is no HOST:PORT.
    """
    return FixedDetector(parse_address(master_uri))


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
