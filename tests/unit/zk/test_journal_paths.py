"""Journal URLs."""

from __future__ import annotations

import os
import pathlib

import pytest

from stoker.zk.local import LocalJournal
from stoker.zk.paths import FileUrl, ZkUrl, parse_journal_url, with_secret


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:/var/lib/stoker", FileUrl("/var/lib/stoker")),
        ("file:///var/lib/stoker/", FileUrl("/var/lib/stoker")),
        ("file://localhost/var", FileUrl("/var")),
        ("file:a/../b c", FileUrl(os.path.join(os.getcwd(), "b c"))),
        ("file:/a%20b", FileUrl("/a%20b")),
        ("zk://h:1/p", ZkUrl((("h", 1),), "/p")),
        ("zk://u:s@h/p", ZkUrl((("h", 2181),), "/p", "u", "s")),
        ("zk://u%40x:a%2Fb%3A:c@h:1/p", ZkUrl((("h", 1),), "/p", "u@x", "a/b::c")),
        ("zk://u@h/p", ZkUrl((("h", 2181),), "/p", "u", "")),
        ("zk://a,b:2182,[::1]:5/p/q/", ZkUrl((("a", 2181), ("b", 2182), ("[::1]", 5)), "/p/q")),
    ],
)
def test_good_urls(url: str, expected: FileUrl | ZkUrl) -> None:
    assert parse_journal_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib",
        "file:",
        "file://",
        "file://host/dir",
        "file:/a\0b",
        "http://h/p",
        "zk:h/p",
        "zk://h:1",
        "zk://h:1/",
        "zk:///p",
        "zk://h:0/p",
        "zk://h:65536/p",
        "zk://h:x/p",
        "zk://h,,i/p",
        "zk://h/a//b",
        "zk://h/../b",
        "zk://:secret@h/p",
        "zk://@h/p",
        "zk://user:secret@h:x/p",
        "zk://user:secret@h,,i/p",
        "zk://user:secret@h",
        "zk://user:secret@h/../p",
        "zk://user:se/secret@h/p",
        "zk://user:secret@" + ",".join(["h"] * 33) + "/p",
        "zk://" + ",".join(["h"] * 33) + "/p",
    ],
)
def test_bad_urls_say_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match="write|at most") as error:
        parse_journal_url(url)
    assert "secret" not in str(error.value).replace("of a secret as", "")


def test_no_text_of_a_url_shows_its_secret() -> None:
    place = parse_journal_url("zk://user:hidden@h/p")
    assert "hidden" not in repr(place) + str(place)
    assert isinstance(place, ZkUrl) and "hidden" not in repr(with_secret(place, "hidden too"))


def test_a_secret_comes_from_the_url_the_environment_or_a_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_TEST_SECRET", "of the environment")
    (tmp_path / "secret").write_text("of the file\n")
    (tmp_path / "both").write_text("user:of:the file\n")
    named, bare = ZkUrl((("h", 1),), "/p", "user", "of the url"), ZkUrl((("h", 1),), "/p")

    def told(place: ZkUrl, secret: str) -> tuple[str, str]:
        found = with_secret(place, secret)
        return found.user, found.secret

    assert told(bare, "") == ("", "")
    assert told(named, "") == ("user", "of the url")
    assert told(named, "literal") == ("user", "literal")
    assert told(named, "env:STOKER_TEST_SECRET") == ("user", "of the environment")
    assert told(named, f"file:{tmp_path}/secret") == ("user", "of the file")
    assert told(bare, f"file:{tmp_path}/both") == ("user", "of:the file")
    assert told(named, f"file:{tmp_path}/both") == ("user", "of:the file"), (
        "one form of it fits both kinds of URL"
    )


@pytest.mark.parametrize(
    ("user", "secret", "said"),
    [
        ("user", "", "a user and a secret"),
        ("", "no-colon", "USER:SECRET is wanted"),
        ("", "no-secret:", "USER:SECRET is wanted"),
        ("user", "env:STOKER_NO_SUCH", "no STOKER_NO_SUCH"),
        ("user", "file:/no/such", "cannot read /no/such"),
        ("user", "file:/dev/null", "is empty"),
    ],
)
def test_a_secret_that_is_none_is_refused(user: str, secret: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        with_secret(ZkUrl((("h", 1),), "/p", user), secret)
    assert "no-colon" not in str(error.value)


def test_a_local_journal_opens_only_file_urls(tmp_path) -> None:  # type: ignore[no-untyped-def]
    journal = LocalJournal.open_url(f"file:{tmp_path}/j", owner="me")
    assert journal.lead().epoch == 1
    journal.close()
    with pytest.raises(ValueError, match="write file:DIR"):
        LocalJournal.open_url("zk://h/p", owner="me")
