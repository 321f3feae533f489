"""Walks index pages of a web server: pages and heads of files, many at once, rows out in batches.

Links count that lie below the source, query and fragment cut off (index pages have links that sort). A link that ends in
"/" is another index page, any other a file. A page that lists its files twice (name and icon) counts once.

Pure of HTTP: the store gives the two coroutines that fetch a page and a head.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from stoker.executor.manifest_format import FileRow
from stoker.executor.under_stores.base import UnderStoreError, Warn
from stoker.executor.under_stores.remote import REQUESTS_MAX

BATCH_ROWS_MAX = 1_024
DEPTH_MAX = (
    64  # of pages below the source; a link that leads back to its parent under another name has no end
)
DEEP_LINKS_MAX = 1_000_000


class Gone(Exception):
    """The server says that there is no such file."""


class Crawl:
    """One walk. Lives on the event loop; `next_batch` until it returns nothing."""

    def __init__(
        self,
        root: str,
        *,
        page: Callable[[str], Awaitable[str]],
        head: Callable[[str, str], Awaitable[FileRow]],
        warn: Warn,
    ) -> None:
        """`root` ends in "/"; `page(url)` returns HTML, `head(url, path)` a row or raises Gone."""
        self._root = _address(root)
        self._page = page
        self._head = head
        self._warn = warn
        # files are taken from the right before pages from the left: it stays as short as the pages allow
        self._todo = deque([self._root])
        self._seen_pages = {self._root}
        self._deep_links: set[str] = set()  # files that a page links to below another directory
        self._running: set[asyncio.Task[FileRow | None]] = set()

    async def next_batch(self) -> list[FileRow]:
        """Return 1 to some BATCH_ROWS_MAX rows, or none: all were returned."""
        rows: list[FileRow] = []
        while len(rows) < BATCH_ROWS_MAX:
            self._start()
            if not self._running:
                if not self._take_deep_links():
                    break
                continue
            done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            try:
                rows += [row for task in done if (row := task.result()) is not None]
            except BaseException:
                for task in self._running:
                    task.cancel()
                raise
        return rows

    def _start(self) -> None:
        while self._todo and len(self._running) < REQUESTS_MAX:
            self._running.add(asyncio.ensure_future(self._visit(self._todo.pop())))

    async def _visit(self, url: str) -> FileRow | None:
        if url.endswith("/"):
            self._add_links(url, await self._page(url))
            return None
        try:
            return await self._head(url, self._path(url))
        except Gone as error:
            self._warn(f"skipped a link to nothing: {error}")
            return None

    def _path(self, url: str) -> str:
        quoted = url[len(self._root) :]
        path = unquote(quoted, errors="surrogateescape")
        if path.count("/") != quoted.count("/"):
            raise UnderStoreError(f"a file name with a slash in it cannot be cached: {url}")
        return path

    def _add_links(self, page: str, html: str) -> None:
        files: dict[str, None] = {}
        for link in _links(html):
            url = _address(urljoin(page, link))
            if url == self._root or not url.startswith(self._root):
                continue
            if url.endswith("/"):
                self._add_page(url)
            elif url.startswith(page) and "/" not in url[len(page) :]:
                files[url] = None
            else:
                self._deep_links.add(url)
        if len(self._deep_links) > DEEP_LINKS_MAX:
            raise UnderStoreError(
                f"pages link to more than {DEEP_LINKS_MAX} files in directories not their own"
            )
        self._todo.extend(files)

    def _add_page(self, url: str) -> None:
        if url in self._seen_pages:
            return
        if url[len(self._root) :].count("/") > DEPTH_MAX:
            raise UnderStoreError(f"index pages nest deeper than {DEPTH_MAX}: {url}")
        self._seen_pages.add(url)
        self._todo.appendleft(url)

    def _take_deep_links(self) -> bool:
        """Queue the deep links whose own directory had no page (that page would have listed them)."""
        links, self._deep_links = self._deep_links, set()
        wanted = [url for url in links if url.rpartition("/")[0] + "/" not in self._seen_pages]
        self._seen_pages.update(url.rpartition("/")[0] + "/" for url in wanted)
        self._todo.extend(wanted)
        return bool(wanted)


def _address(url: str) -> str:
    """Return `url` without query and fragment."""
    return urlunsplit((*urlsplit(url)[:3], "", ""))


class _LinkParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _links(html: str) -> list[str]:
    parser = _LinkParser()
    parser.feed(html)
    parser.close()
    return parser.links
