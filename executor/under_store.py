"""Under stores: where datasets really are. Opens the right one for a source.

 - an absolute path, or file://     executor/under_stores/local.py
 - http://, https://                executor/under_stores/http.py
 - s3://, s3a://                    executor/under_stores/s3.py
 - any other fsspec URL             executor/under_stores/generic.py

Every store only reads, lists and proves fingerprints (under_stores/base.py). Only fillers and the lister import this: no
process that does is monkey-patched by gevent (fsspec's loop does not survive it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stoker.executor.manifest_format import FileRow
from stoker.executor.under_stores.base import (
    PIECE_BYTES_MAX,
    READING_BYTES_MAX,
    Outcome,
    Piece,
    ReadFailure,
    Reading,
    UnderStore,
    UnderStoreError,
    Warn,
    one_line,
)
from stoker.executor.under_stores.generic import GenericStore
from stoker.executor.under_stores.http import HttpStore
from stoker.executor.under_stores.local import LocalStore
from stoker.executor.under_stores.options import Options
from stoker.executor.under_stores.s3 import S3Store

__all__ = [
    "PIECE_BYTES_MAX",
    "READING_BYTES_MAX",
    "FileRow",
    "Outcome",
    "Piece",
    "ReadFailure",
    "Reading",
    "UnderStore",
    "UnderStoreError",
    "Warn",
    "one_line",
    "open_under_store",
]


def open_under_store(source: str, options: Mapping[str, str]) -> UnderStore:
    """Return the under store of `source`, an fsspec URL or an absolute path; nothing is read yet.

    `options` are fsspec's storage options as text; values `env:NAME` and `file:PATH` are looked up here.

    :raises UnderStoreError: no such protocol, a missing package or secret, or a source that is no URL.
    """
    resolved = Options(options)
    protocol, separator, rest = source.partition("://")
    if not separator:
        if source.startswith("/"):
            return LocalStore(source)
        raise UnderStoreError(
            f"{resolved.redact(source)!r} is neither a URL nor an absolute path; write s3://BUCKET/PREFIX, "
            "https://HOST/DIR/ or /DIR"
        )
    if protocol in ("file", "local") and "::" not in source:
        return LocalStore(_local_path(source, rest))
    try:
        return _constructor(source, protocol)(source, resolved)
    except (TypeError, ValueError) as error:
        raise UnderStoreError(
            resolved.redact(f"the options do not fit a {protocol}:// source: {error}")
        ) from error


def _constructor(source: str, protocol: str) -> Callable[[str, Options], UnderStore]:
    if "::" not in source:
        if protocol in ("http", "https"):
            return HttpStore
        if protocol in ("s3", "s3a"):
            return S3Store
    return GenericStore


def _local_path(source: str, path: str) -> str:
    if not path.startswith("/"):
        raise UnderStoreError(f"{source} is no absolute path; write file:///DIR, with three slashes")
    return path
