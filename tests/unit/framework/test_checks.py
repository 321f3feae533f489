"""What comes in from outside: accepted or refused with what is allowed, never anything in between."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.framework.checks import (
    PATH_RULE,
    check_key,
    check_name,
    check_options,
    check_path,
    check_paths,
    check_schema,
    check_source,
    parse_json,
)
from stoker.framework.errors import Refused
from stoker.framework.model import NAME_RULE
from stoker.framework.routes import FLEET, NEW_DATASET, NEW_JOB
from stoker.framework.schemes import known_schemes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def refusal_of(call: Any, *arguments: Any) -> Any:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    assert caught.value.refusal.status in (400, 413)
    assert len(caught.value.refusal.message) < 500
    return caught.value.refusal


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"nul",
        b"\xff\xfe",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b"[" * 5000,
        b"1" * 5000,
        b"[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]",
    ],
)
def test_what_is_no_strict_json_is_refused(body: bytes) -> None:
    refusal_of(parse_json, body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_refusal(body: bytes) -> None:
    try:
        parse_json(body)
    except Refused as error:
        assert error.refusal.status == 400


def test_bytes_that_are_not_allowed_are_told_with_sizes() -> None:
    refusal = refusal_of(check_schema, {"instances": 1, "mem_bytes": 0}, FLEET, "the body")
    assert (refusal.message, refusal.hint) == ("the body.mem_bytes is 0", "16.0 MiB to 64.0 TiB")


@given(JSON)
def test_any_json_is_a_dataset_or_a_refusal(value: Any) -> None:
    try:
        check_schema(value, NEW_DATASET, "the body")
    except Refused as error:
        assert error.refusal.status == 400 and error.refusal.message
        return
    assert isinstance(value["name"], str) and isinstance(value["source"], str)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ([], "must be an object, not a list"),
        ({}, "lacks 'kind'"),
        ({"kind": "load", "dataset": 5}, "the body.dataset must be a string, not a whole number"),
        ({"kind": "eat", "dataset": "d"}, "'eat'"),
        ({"kind": "load", "dataset": "d", "path": "a"}, "has no field 'path'"),
        ({"kind": "load", "dataset": "d", "paths": "a"}, "must be a list, not a string"),
        ({"kind": "load", "dataset": "d", "paths": [None]}, "paths[0] must be a string, not null"),
        ({"kind": "load", "dataset": "d", "fit": 1}, "must be true or false, not a whole number"),
        ({"kind": "load", "dataset": "d", "paths": ["x"] * 2000}, "2000 entries"),
        ({"kind": "load", "dataset": "d\0"}, "NUL"),
        ({"kind": "load", "dataset": json.loads('"\\ud800"')}, "surrogate"),
    ],
)
def test_the_message_names_the_field_and_what_it_is(body: Any, says: str) -> None:
    assert says in refusal_of(check_schema, body, NEW_JOB, "the body").message


def test_a_true_is_no_number() -> None:
    body = {"name": "a", "source": "s", "replicas": True}
    assert (
        "whole number, not true or false" in refusal_of(check_schema, body, NEW_DATASET, "the body").message
    )


def test_an_unknown_field_has_a_code_of_its_own() -> None:
    refusal = refusal_of(check_schema, {"name": "a", "source": "s", "sauce": 1}, NEW_DATASET, "the body")
    assert refusal.code == "unknown_field" and "source" in refusal.hint


@pytest.mark.parametrize(
    "name", ["", "A", ".a", "-a", "a/b", "../a", "a b", "a@1", "a\0", "ä", "a" * 64, "x" * 10_000, "a\n"]
)
def test_a_wrong_name_is_refused_with_the_rule(name: str) -> None:
    assert refusal_of(check_name, name).hint == NAME_RULE


@pytest.mark.parametrize("name", ["a", "0", "imagenet-1k_v2.train", "a" * 63])
def test_a_good_name_passes(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "path",
    [
        "/a",
        "..",
        "a/..",
        "../a",
        "a/../b",
        "./a",
        "a//b",
        "a\0b",
        "//",
        "/",
        "a" * 10_000,
        json.loads('"\\udc80"'),
        "é" * 2049,
    ],
)
def test_a_wrong_path_is_refused_with_the_rule(path: str) -> None:
    assert refusal_of(check_path, path).hint == PATH_RULE


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("", ""),
        ("a", "a"),
        ("a/b/", "a/b"),
        ("...", "..."),
        ("a%2F..", "a%2F.."),
        (" a *?[", " a *?["),
        ("é" * 2048, "é" * 2048),
    ],
)
def test_a_good_path_is_taken_literally(path: str, clean: str) -> None:
    assert check_path(path) == clean


def test_paths_are_kept_once_and_everything_swallows_the_rest() -> None:
    assert check_paths(["a", "b/", "a"]) == ("a", "b")
    assert check_paths(["a", ""]) == ()
    refusal = refusal_of(check_paths, ["x" * 4000 + str(i) for i in range(10)])
    assert (refusal.status, refusal.code) == (413, "too_large")


@given(st.text(max_size=40))
def test_a_path_that_passes_stays_inside_the_dataset(path: str) -> None:
    try:
        clean = check_path(path)
    except Refused:
        return
    assert not clean.startswith("/") and "\0" not in clean
    assert clean == "" or all(part not in ("", ".", "..") for part in clean.split("/"))


@pytest.mark.parametrize(
    "source",
    [
        "",
        "relative/path",
        "://x",
        "s3:",
        "s3://",
        "S3://b",
        "s3://b/../c",
        "http://u:secret@h/",
        " s3://b",
        "s3://b\0",
        "x" * 10_000,
        "s3://" + "x" * 5000,
        "http://[::1",
    ],
)
def test_a_wrong_source_is_refused(source: str) -> None:
    refusal_of(check_source, source, ("",))


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("/data/set", "file:///data/set"),
        ("file:///data", "file:///data"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("https://host:8080/a?b=c", "https://host:8080/a?b=c"),
        ("simplecache::s3://bucket/x", "simplecache::s3://bucket/x"),
    ],
)
def test_everything_passes_where_everything_is_allowed(source: str, url: str) -> None:
    assert check_source(source, ("",)) == url


@pytest.mark.parametrize(
    "source",
    [
        "/etc",
        "file:///etc/passwd",
        "local:///etc",
        "simplecache::file:///etc",
        "zip://a::file:///etc/x.zip",
        "filecache://x",
        "memory://a",
    ],
)
def test_by_default_nothing_of_the_machines_themselves_may_be_added(source: str) -> None:
    assert refusal_of(check_source, source, ()).code == "source_not_allowed"


def test_a_prefix_ends_at_a_component() -> None:
    allowed = ("file:///data", "s3://bucket/")
    assert check_source("/data/a", allowed) == "file:///data/a"
    assert check_source("/data", allowed) == "file:///data"
    assert check_source("s3://bucket/a", allowed) == "s3://bucket/a"
    for source in (
        "/database",
        "/data/../etc",
        "/data/%2e%2E/etc",
        "s3://bucket2/a",
        "s3://bucket/a::file:///etc",
        "http://h/",
        "simplecache::file:///data/x",
    ):
        refusal_of(check_source, source, allowed)
    assert check_source("simplecache::s3://b/x", ("simplecache::s3://b",)) == "simplecache::s3://b/x"
    assert check_source("/data/x", ("/data",)) == "file:///data/x"


@pytest.mark.parametrize(
    "options",
    [
        {"secret": "abc"},
        {"aws_secret_access_key": "x"},
        {"password": "x"},
        {"token": "ghp_1"},
        {"account_key": "x"},
        {"connection_string": "AccountKey=x"},
    ],
)
def test_a_secret_is_never_taken_written_out(options: dict[str, str]) -> None:
    """Options are journaled and shown by the API."""
    refusal = refusal_of(check_options, options, ("",))
    assert "env:" in refusal.hint and next(iter(options.values())) not in refusal.message.replace(
        next(iter(options)), ""
    )


@pytest.mark.parametrize(
    "options",
    [
        {"secret": "env:AWS_SECRET"},
        {"password": "file:/run/p"},
        {"token": "anon"},
        {"endpoint_url": "http://h"},
        {"key": "id"},
        {},
    ],
)
def test_references_to_secrets_and_plain_options_pass(options: dict[str, str]) -> None:
    assert check_options(options, ()) == options


def test_options_cannot_lead_to_another_source() -> None:
    refusal_of(check_options, {"target_protocol": "file"}, ())
    assert check_options({"target_protocol": "file"}, ("",))


def test_a_key_is_short_and_printable() -> None:
    assert check_key("abc-123") == "abc-123"
    for key in ("", "x" * 1000, "a\nb", "é"):
        refusal_of(check_key, key)


def test_a_scheme_that_nobody_can_open_is_refused_with_those_that_can() -> None:
    known = frozenset({"file", "s3", "zip"})
    assert check_source("s3://bucket/x", ("",), known) == "s3://bucket/x"
    assert check_source("/data", ("",), known) == "file:///data"
    for source, scheme in (("gopher://h/x", "gopher"), ("zip://a::gopher://h/x.zip", "gopher")):
        with pytest.raises(Refused, match=f"unknown scheme {scheme}://") as refused:
            check_source(source, ("",), known)
        assert "file, s3, zip" in refused.value.refusal.hint


def test_the_lister_names_the_schemes_it_can_open() -> None:
    assert {"file", "http", "https", "s3", "hdfs"} <= known_schemes()
    assert known_schemes(python="/nowhere/python") == frozenset()
