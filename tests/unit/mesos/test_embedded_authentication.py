"""Who may call the embedded Mesos: credentials as they are written, and as they are sent."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from stoker.mesos.embedded.authentication import Authenticator, CredentialError, parse_credential
from stoker.mesos.embedded.core.calls import Refused


def basic(text: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_a_credential_is_written_out_or_stands_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    monkeypatch.setenv("SECRET_OF_TEST", "from the environment")
    assert parse_credential("p:s:t") == ("p", "s:t")
    assert parse_credential(f"p:file:{tmp_path}/secret") == ("p", "from a file")
    assert parse_credential("p:env:SECRET_OF_TEST") == ("p", "from the environment")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p", "a credential is PRINCIPAL:SECRET"),
        (":s", "a credential is PRINCIPAL:SECRET"),
        ("p:", "a credential is PRINCIPAL:SECRET"),
        ("p:env:NO_SUCH_VARIABLE", "the environment has no NO_SUCH_VARIABLE"),
        ("p:file:/no/such", "cannot read /no/such"),
    ],
)
def test_what_is_no_credential_says_what_is(text: str, said: str) -> None:
    with pytest.raises(CredentialError, match=said):
        parse_credential(text)


def test_without_credentials_everybody_may_call() -> None:
    assert Authenticator().authenticate({}) is None
    Authenticator().check({"type": "REVIVE"}, None, "somebody")


def test_a_secret_may_hold_colons_and_a_wrong_one_is_401() -> None:
    guard = Authenticator({"p": "a:b"})
    assert guard.authenticate(basic("p:a:b")) == "p"
    for headers in ({}, basic("p:a"), basic("q:a:b"), {"authorization": "Basic \xff"}):
        with pytest.raises(Refused) as refused:
            guard.authenticate(headers)
        assert refused.value.answer.status == 401


def test_secrets_are_not_shown() -> None:
    assert "a:b" not in repr(Authenticator({"p": "a:b"}))
