"""The under store read by the program itself, with its own credentials: only where it asked for fallback="direct".

The file is looked at before and after the read: if its size, or its ETag or time, is not that of the dataset version, the
read fails. Where the store tells nothing to compare but a size, it fails too: wrong bytes are never returned.
"""

from __future__ import annotations

import datetime
import errno
from collections.abc import Callable, Mapping
from typing import Any

import fsspec

from stoker.client.errors import ReadError, file_changed
from stoker.executor.manifest import Manifest

_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "Last-Modified")
_SECRET_PREFIXES = ("env:", "file:")  # references that only executors resolve


class UnderStore:
    """The source of one dataset, opened at the first read; for any thread."""

    def __init__(
        self,
        name: str,
        describe: Callable[[], Mapping[str, Any]],
        options: Mapping[str, Any],
        count: Callable[[int], None],
    ) -> None:
        """:param describe: returns the dataset as the API shows it (`source`, `options`).

        :param options: fsspec's storage_options of the program's own; they win over the dataset's.
        :param count: is told the bytes of each read.
        """
        self._name = name
        self._describe = describe
        self._options = dict(options)
        self._count = count
        self._opened: tuple[Any, str] | None = None

    def read(self, manifest: Manifest, row: int, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) of the file, proven to be this version's.

        :raises OSError: they cannot be had, or the file changed.
        """
        path = manifest.path(row)
        try:
            filesystem, root = self._open()
            full = f"{root}/{path}" if root else path
            if filesystem.isfile(root):  # the dataset is one file
                full = root
            self._compare(filesystem.info(full), manifest, row)
            data = bytes(filesystem.cat_file(full, start, stop))
            filesystem.invalidate_cache()
            self._compare(filesystem.info(full), manifest, row)
        except OSError:
            raise
        except Exception as error:  # under stores raise what their libraries do
            text = " ".join(str(error).split())
            raise ReadError(
                errno.EIO, f"the under store does not give it: {text}", f"{self._name}/{path}"
            ) from error
        if len(data) != stop - start:
            raise file_changed(self._name, f"{self._name}/{path}", f"{len(data)} bytes for {stop - start}")
        self._count(len(data))
        return data

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            described = self._describe()
            options = {
                key: value
                for key, value in (described.get("options") or {}).items()
                if not str(value).startswith(_SECRET_PREFIXES)
            }
            source = str(described["source"])
            source = f"file://{source}" if source.startswith("/") else source
            filesystem, root = fsspec.core.url_to_fs(source, **{**options, **self._options})
            self._opened = filesystem, str(root).rstrip("/")
        return self._opened

    def _compare(self, info: Mapping[str, Any], manifest: Manifest, row: int) -> None:
        path = f"{self._name}/{manifest.path(row)}"
        if info.get("size") != manifest.size(row):
            raise file_changed(
                self._name, path, f"its size is {info.get('size')}, it was {manifest.size(row)}"
            )
        etag, token = (
            str(info.get("ETag") or info.get("etag") or ""),
            manifest.token(row).decode(errors="replace"),
        )
        if etag and token.strip('"') == etag.strip('"'):
            return
        when = next((info[key] for key in _TIMES if info.get(key) is not None), None)
        seconds, listed = _seconds(when), manifest.mtime_ns(row) / 1e9
        if seconds is None or not listed:
            raise ReadError(
                errno.ENOTSUP,
                "the under store tells neither an ETag nor a time to compare, so fallback is not safe",
                path,
            )
        is_whole = seconds == int(seconds) or listed == int(listed)  # one side tells whole seconds only
        if abs(seconds - listed) > (1.0 if is_whole else 1e-3) or (is_whole and int(seconds) != int(listed)):
            raise file_changed(self._name, path, "its time is another")


def _seconds(when: Any) -> float | None:
    if isinstance(when, int | float):
        return float(when)
    if isinstance(when, datetime.datetime):
        return when.timestamp()
    if isinstance(when, str):
        try:
            return datetime.datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp()
        except ValueError:
            return None
    return None
