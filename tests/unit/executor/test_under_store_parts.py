"""The parts that under stores share: options and their secrets, concurrent reading, index pages."""

from __future__ import annotations

import asyncio
import pathlib
import threading
from collections.abc import Iterator

import pytest

from stoker.executor.under_store import FileRow, Piece, ReadFailure, UnderStoreError
from stoker.executor.under_stores import remote
from stoker.executor.under_stores.http_index import Crawl, Gone
from stoker.executor.under_stores.options import SECRET_BYTES_MAX, Options, Redactor
from stoker.executor.under_stores.remote import Health, Once, RemoteReading, Transient
from stoker.executor.wire import Failure
from support.waiting import DEADLINE_S


class TestOptions:
    def test_values_get_their_types(self) -> None:
        class FileSystem:
            def __init__(
                self, port: int = 22, timeout: float = 1.0, anon: bool = False, key: str = ""
            ) -> None: ...

        options = Options(
            {
                "port": "2222",
                "timeout": "0.5",
                "anon": "true",
                "key": "12345",
                "nothing": "null",
                "client_kwargs": '{"region_name": "x", "n": 1}',
                "config.retries.max": "3",
            }
        )
        assert options.typed_for(FileSystem) == {
            "port": 2222,
            "timeout": 0.5,
            "anon": True,
            "key": "12345",
            "nothing": None,
            "client_kwargs": {"region_name": "x", "n": 1},
            "config": {"retries": {"max": "3"}},
        }
        with pytest.raises(UnderStoreError, match="'port' must be a number"):
            Options({"port": "ssh"}).typed_for(FileSystem)

    def test_secrets_are_looked_up_here(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("A_SECRET", "true")
        (tmp_path / "secret").write_text("from a file\n")
        options = Options(
            {
                "a": "env:A_SECRET",
                "b": f"file:{tmp_path}/secret",
                "c": '{"inner": "env:A_SECRET"}',
                "d.e": "env:A_SECRET",
            }
        )
        assert options.values == {"a": "true", "b": "from a file", "c": {"inner": "true"}, "d": {"e": "true"}}

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (
                {"key": "env:NOT_SET_ANYWHERE"},
                "'key' wants the environment variable 'NOT_SET_ANYWHERE'.*executor-env",
            ),
            ({"key": "file:/no/such/file"}, "'key' wants the file '/no/such/file'.*No such file"),
            ({"key": "{not json"}, "'key' looks like JSON"),
            ({"a": "1", "a.b": "2"}, "'a.b' is inside 'a'"),
        ],
    )
    def test_a_reference_to_nothing_says_what_is_missing(self, options: dict[str, str], text: str) -> None:
        with pytest.raises(UnderStoreError, match=text):
            Options(options)

    def test_a_secret_file_is_bounded(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "large").write_bytes(b"x" * (SECRET_BYTES_MAX + 1))
        with pytest.raises(UnderStoreError, match=f"more than {SECRET_BYTES_MAX}"):
            Options({"key": f"file:{tmp_path}/large"})

    def test_secrets_are_taken_out_of_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A_SECRET", "first-secret")
        options = Options(
            {
                "x": "env:A_SECRET",
                "password": "hunter22",
                "region": "north",
                "c": '{"aws_secret_access_key": "deepsecret"}',
            }
        )
        text = options.redact(
            "first-secret hunter22 deepsecret north http://u:p@h/x?a=1&X-Amz-Signature=99ff&token=abc\nline 2"
        )
        assert text == "*** *** *** north http://***@h/x?a=1&X-Amz-Signature=***&token=*** line 2"

    def test_longer_secrets_go_first_and_tiny_ones_stay(self) -> None:
        assert Redactor({"abcd", "abcdef", "a"})("abcdef abcd a") == "*** *** a"


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(DEADLINE_S)
    loop.close()


def settle(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop do all that it can do by now."""

    async def turns() -> None:
        for _ in range(200):
            await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(turns(), loop).result(DEADLINE_S)


def pieces(count: int, length: int = 1) -> list[Piece]:
    return [Piece(f"f{i}", 0, length, length, 0, b"t") for i in range(count)]


class TestRemoteReading:
    def test_requests_are_bounded_whoever_reads(self, loop: asyncio.AbstractEventLoop) -> None:
        under_way = most = 0

        async def fetch(piece: Piece) -> bytes:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.001)
            under_way -= 1
            return piece.path.encode()

        health = Health()
        readings = [RemoteReading(loop, health, fetch, pieces(500)) for _ in range(3)]
        for reading in readings:
            assert {number: bytes(data) for number, data in reading} == {
                i: f"f{i}".encode() for i in range(500)
            }
        assert most == remote.REQUESTS_MAX

    def test_what_a_reader_waits_for_goes_before_a_load(self, loop: asyncio.AbstractEventLoop) -> None:
        order: list[str] = []
        is_full = threading.Event()
        go_on = asyncio.Event()

        async def fetch(piece: Piece) -> bytes:
            order.append(piece.path)
            if len(order) == remote.REQUESTS_MAX:
                is_full.set()
            await go_on.wait()
            return b"x"

        health = Health()
        load = RemoteReading(loop, health, fetch, pieces(3 * remote.REQUESTS_MAX))
        assert is_full.wait(DEADLINE_S)
        urgent = RemoteReading(loop, health, fetch, [Piece("urgent", 0, 1, 1, 0, b"")], urgent=True)
        given_up = RemoteReading(loop, health, fetch, [Piece("given up", 0, 1, 1, 0, b"")], urgent=True)
        settle(loop)
        given_up.cancel()
        settle(loop)
        loop.call_soon_threadsafe(go_on.set)
        assert list(urgent) == [(0, b"x")]
        assert len(list(load)) == 3 * remote.REQUESTS_MAX
        assert order[remote.REQUESTS_MAX] == "urgent" and "given up" not in order
        assert len(list(RemoteReading(loop, health, fetch, pieces(500)))) == 500, "no turn was lost"

    def test_bytes_that_nobody_took_are_bounded(self, loop: asyncio.AbstractEventLoop) -> None:
        fetched = 0
        is_full = threading.Event()
        length = 1024 * 1024
        room = remote.READING_BYTES_MAX // length

        async def fetch(piece: Piece) -> bytes:
            nonlocal fetched
            fetched += 1
            if fetched == room:
                is_full.set()
            return bytes(length)

        reading = RemoteReading(loop, Health(), fetch, pieces(4 * room, length))
        assert is_full.wait(DEADLINE_S)
        settle(loop)
        assert fetched == room
        next(reading)
        next(reading)  # the first one's room is free again
        settle(loop)
        assert fetched == room + 1
        assert len(list(reading)) == 4 * room - 2

    def test_what_may_pass_is_tried_again_with_longer_pauses(self, loop: asyncio.AbstractEventLoop) -> None:
        attempts = 0

        async def fetch(piece: Piece) -> bytes:
            nonlocal attempts
            attempts += 1
            if attempts < remote.ATTEMPTS_MAX:
                raise Transient("not now")
            return b"x"

        assert list(RemoteReading(loop, Health(), fetch, pieces(1))) == [(0, b"x")]
        assert attempts == remote.ATTEMPTS_MAX
        for attempt in range(1, 20):
            assert 50 <= remote.pause_ms(attempt) <= remote.BACKOFF_MS_MAX
        assert remote.pause_ms(1, 3_000) == 3_000 and remote.pause_ms(1, 10**9) == remote.BACKOFF_MS_MAX

    def test_a_dead_store_costs_one_attempt_a_piece_until_it_answers(
        self, loop: asyncio.AbstractEventLoop
    ) -> None:
        is_up = False
        attempts = 0

        async def fetch(piece: Piece) -> bytes:
            nonlocal attempts
            attempts += 1
            if not is_up:
                raise Transient("down")
            return b"x"

        health = Health()
        failed = [outcome for _, outcome in RemoteReading(loop, health, fetch, pieces(20))]
        assert all(isinstance(o, ReadFailure) and o.code == Failure.UNDER_STORE for o in failed)
        assert "down" in str(failed[0])
        attempts = 0
        list(RemoteReading(loop, health, fetch, pieces(100)))
        assert attempts == 100
        is_up = True
        assert list(RemoteReading(loop, health, fetch, pieces(1))) == [(0, b"x")]
        is_up, attempts = False, 0
        list(RemoteReading(loop, health, fetch, pieces(1)))
        assert attempts == remote.ATTEMPTS_MAX

    def test_cancel_stops_the_requests(self, loop: asyncio.AbstractEventLoop) -> None:
        began = threading.Event()
        ended = threading.Event()

        async def fetch(piece: Piece) -> bytes:
            began.set()
            try:
                await asyncio.sleep(3_600)
            finally:
                ended.set()
            return b""

        reading = RemoteReading(loop, Health(), fetch, pieces(10))
        assert began.wait(DEADLINE_S)
        reading.cancel()
        assert list(reading) == []
        assert ended.wait(DEADLINE_S)

    def test_a_mistake_in_a_store_ends_the_reading_and_is_raised(
        self, loop: asyncio.AbstractEventLoop
    ) -> None:
        async def fetch(piece: Piece) -> bytes:
            raise KeyError("our mistake")

        with pytest.raises(ExceptionGroup) as caught:
            list(RemoteReading(loop, Health(), fetch, pieces(10)))
        assert caught.group_contains(KeyError)

    def test_a_wait_says_whether_a_step_would_wait(self, loop: asyncio.AbstractEventLoop) -> None:
        may_answer = asyncio.Event()

        async def fetch(piece: Piece) -> bytes:
            await may_answer.wait()
            return b"x"

        reading = RemoteReading(loop, Health(), fetch, pieces(2))
        assert not reading.wait(20)
        loop.call_soon_threadsafe(may_answer.set)
        assert reading.wait(90_000) and reading.wait(0)
        assert len(list(reading)) == 2
        assert reading.wait(0)

    def test_a_fact_is_asked_for_once_and_again_after_a_failure(self) -> None:
        async def check() -> None:
            asked = 0

            async def ask() -> int:
                nonlocal asked
                asked += 1
                await asyncio.sleep(0)
                if asked == 1:
                    raise Transient("not now")
                return asked

            once = Once(ask)
            failures = await asyncio.gather(*(once.get() for _ in range(5)), return_exceptions=True)
            assert all(isinstance(f, Transient) for f in failures) and asked == 1
            assert await asyncio.gather(*(once.get() for _ in range(5))) == [2] * 5
            assert await once.get() == 2

        asyncio.run(check())


ROOT = "http://h/data/"


def crawl(site: dict[str, str], *, gone: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """Return the paths and warnings of a walk over `site`: address -> HTML."""
    warnings: list[str] = []

    async def page(url: str) -> str:
        return site[url]

    async def head(url: str, path: str) -> FileRow:
        if path in gone:
            raise Gone(url)
        return FileRow(path, 1, 0, b"t")

    async def walk() -> list[str]:
        walked = Crawl(ROOT, page=page, head=head, warn=warnings.append)
        paths: list[str] = []
        while batch := await walked.next_batch():
            paths += [row.path for row in batch]
        return paths

    return sorted(asyncio.run(walk())), warnings


def links(*urls: str) -> str:
    return "".join(f'<a href="{url}">x</a>' for url in urls)


class TestIndexPages:
    def test_links_of_every_kind(self) -> None:
        page = links(
            "plain", "/data/absolute", "http://h/data/full", "./dot", "sub/../up", "a%20b%26c?x=1#top", "amp&amp;ersand",
            "?C=N;O=D", "../", "/", "/other/x", "http://elsewhere/data/x", "mailto:me", "#top", "", "plain",
        )  # fmt: skip
        page += '<A HREF=unquoted>x</A><p>http://h/data/text</p><img src="picture"><a name="x">no link</a>'
        paths, _ = crawl({ROOT: page})
        assert paths == sorted(["plain", "absolute", "full", "dot", "up", "a b&c", "amp&ersand", "unquoted"])

    def test_directories_are_walked_once(self) -> None:
        site = {
            ROOT: links("sub/", "sub/?C=S", "sub/deep/"),
            f"{ROOT}sub/": links("../", "deep/", "./", "file"),
            f"{ROOT}sub/deep/": links("../../sub/", "file"),
        }
        assert crawl(site)[0] == ["sub/deep/file", "sub/file"]

    def test_files_that_a_page_links_to_below_another_directory(self) -> None:
        site = {
            ROOT: links("a/x", "a/x", "b/y", "b/", "c/d/e"),
            f"{ROOT}b/": links("y", "../a/x"),
        }
        assert crawl(site)[0] == ["a/x", "b/y", "c/d/e"]

    def test_a_link_to_nothing_is_told(self) -> None:
        paths, warnings = crawl({ROOT: links("here", "gone")}, gone=("gone",))
        assert paths == ["here"] and len(warnings) == 1 and "gone" in warnings[0]

    def test_a_thousand_files_come_in_batches(self) -> None:
        assert len(crawl({ROOT: links(*(f"f{i}" for i in range(3_000)))})[0]) == 3_000

    def test_pages_without_an_end_are_an_error(self) -> None:
        class Endless(dict[str, str]):
            def __missing__(self, url: str) -> str:
                return links("again/")

        with pytest.raises(UnderStoreError, match="nest deeper than 64"):
            crawl(Endless())

    def test_a_slash_inside_a_name_is_an_error_that_names_it(self) -> None:
        with pytest.raises(UnderStoreError, match="a%2Fb"):
            crawl({ROOT: links("a%2Fb")})
