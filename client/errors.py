"""What a training program can get wrong or be told: one base class, and who can act on each.

Reads raise `OSError`s (`ReadError` and its leaves, or the builtin ones for a missing or a wrong path), so that code
written for files handles them; calls of the REST API raise `ApiError`. All of them pickle: a DataLoader's worker sends
them to its parent.
"""

from __future__ import annotations

import errno
from typing import Any


class ClientError(Exception):
    """Anything that this package raises that is not an OSError."""


class ApiError(ClientError):
    """A scheduler refused or could not be reached; `status` is HTTP's (0: no scheduler answered)."""

    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(status, code, message, hint)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UrlError(ClientError, ValueError):
    """STOKER_URL (or `url=`) is missing or is not of the form http://host:port[,host:port]."""


class ReadError(OSError):
    """Bytes of a dataset could not be read now; nothing wrong was returned. `filename` says of which file."""


class FileChanged(ReadError):
    """The file changed in the under store since this dataset version was listed: the operator refreshes the dataset."""


class DatasetGone(ReadError):
    """The dataset was removed, or added again, or laid out anew, while it was open: open it again."""


class NoExecutor(ReadError):
    """No executor answered within the deadline: the operator looks at `stoker fleet show`, or the program asks for fallback."""


def file_changed(name: str, path: str, message: str) -> FileChanged:
    return FileChanged(
        errno.ESTALE,
        f"the file changed in the under store after this version of the dataset was listed; "
        f"run `stoker dataset refresh {name}` and open it again ({message})",
        path,
    )


def dataset_gone(name: str, what: str) -> DatasetGone:
    return DatasetGone(errno.ESTALE, f"dataset {name!r} {what} while it was open; open it again", name)


def read_only(what: str) -> OSError:
    """Return the error of everything that would write."""
    return OSError(
        errno.EROFS, f"stoker:// is read-only: {what} is not possible; write to the under store instead"
    )


def missing(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such file in the dataset", path)


def from_json(status: int, body: Any) -> ApiError:
    """Return the error in a scheduler's answer `{"error": {"code", "message", "hint"}}`."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ApiError(
            status, "bad_answer", f"HTTP {status} without an error in Stoker's form: {str(body)[:200]}"
        )
    return ApiError(
        status, str(error.get("code", "")), str(error.get("message", "")), str(error.get("hint") or "")
    )
