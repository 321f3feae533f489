"""Who may call: HTTP Basic authentication of schedulers, checked on every call as a real master does.

Owns the credentials and the two rules on principals: the one that is authenticated must be the one of the FrameworkInfo, if that
names any; and a framework belongs to the principal that subscribed it.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stoker.mesos.embedded.core.calls import Refused
from stoker.mesos.embedded.core.codec import Message

REALM = "mesos-master-scheduler"
SECRET_BYTES_MAX = 4096


class CredentialError(Exception):
    """A credential is not one; the text says what to write, and holds no secret."""


@dataclass(slots=True)
class Authenticator:
    """The principals that may call, with their secrets; without any, everybody may."""

    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def authenticate(self, headers: Mapping[str, str]) -> str | None:
        """Return the principal of a call; None: nobody needs one.

        :raises Refused: 401.
        """
        if not self.secrets:
            return None
        scheme, _, encoded = headers.get("authorization", "").partition(" ")
        try:
            principal, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            principal = secret = ""
        known = self.secrets.get(principal)
        if scheme != "Basic" or known is None or not hmac.compare_digest(known.encode(), secret.encode()):
            raise Refused(401, "401 Unauthorized.", (("WWW-Authenticate", f'Basic realm="{REALM}"'),))
        return principal

    def check(self, call: Message, principal: str | None, owner: str | None) -> None:
        """Check the principals of a decoded call; `owner` is the principal that its framework was subscribed with.

        :raises Refused: 400, they differ.
        """
        if principal is None:
            return
        text = f"Authenticated principal '{principal}' does not match principal"
        if call["type"] == "SUBSCRIBE":
            named = call["subscribe"]["framework_info"].get("principal", principal)
            if named != principal:
                raise Refused(
                    400, f"Failed to validate scheduler::Call: {text} '{named}' set in `FrameworkInfo`"
                )
        elif owner is not None and owner != principal:
            raise Refused(400, f"{text} '{owner}' set in `FrameworkInfo`")


def parse_credential(text: str) -> tuple[str, str]:
    """Return principal and secret of PRINCIPAL:SECRET, where SECRET may be env:NAME or file:PATH.

    :raises CredentialError: it has no such form, or nothing is there.
    """
    principal, colon, secret = text.partition(":")
    if not colon or not principal or not secret:
        raise CredentialError("a credential is PRINCIPAL:SECRET, PRINCIPAL:env:NAME or PRINCIPAL:file:PATH")
    if secret.startswith("env:"):
        name = secret.removeprefix("env:")
        if not os.environ.get(name):
            raise CredentialError(f"the secret of {principal}: the environment has no {name}")
        return principal, os.environ[name]
    if secret.startswith("file:"):
        path = Path(secret.removeprefix("file:"))
        try:
            told = path.read_bytes()[:SECRET_BYTES_MAX].decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialError(f"the secret of {principal}: cannot read {path}: {error}") from error
        if not told:
            raise CredentialError(f"the secret of {principal}: {path} is empty")
        return principal, told
    return principal, secret
