"""Journal URLs."""

from __future__ import annotations

import os

import pytest

from stoker.zk.local import LocalJournal
from stoker.zk.paths import FileUrl, ZkUrl, parse_journal_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:/var/lib/stoker", FileUrl("/var/lib/stoker")),
        ("file:///var/lib/stoker/", FileUrl("/var/lib/stoker")),
        ("file://localhost/var", FileUrl("/var")),
        ("file:a/../b c", FileUrl(os.path.join(os.getcwd(), "b c"))),
        ("file:/a%20b", FileUrl("/a%20b")),
        ("zk://h:1/p", ZkUrl((("h", 1),), "/p")),
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
        "zk://user:secret@h/p",
        "zk://" + ",".join(["h"] * 33) + "/p",
    ],
)
def test_bad_urls_say_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match="write|do not belong|at most") as error:
        parse_journal_url(url)
    assert "secret" not in str(error.value).replace("secrets do not", "")


def test_a_local_journal_opens_only_file_urls(tmp_path) -> None:  # type: ignore[no-untyped-def]
    journal = LocalJournal.open_url(f"file:{tmp_path}/j", owner="me")
    assert journal.lead().epoch == 1
    journal.close()
    with pytest.raises(ValueError, match="write file:DIR"):
        LocalJournal.open_url("zk://h/p", owner="me")
