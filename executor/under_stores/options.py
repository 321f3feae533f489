"""A source's options: where their secrets come from, what type they have, and how to keep them out of every message.

Options are strings, as `--option KEY=VALUE` gives them. A value `env:NAME` or `file:PATH` is looked up here, in the
process that reads, and nowhere else: the journal and the API only ever hold the reference. KEY may be dotted for nested
options (`client_kwargs.region_name=eu-north-1`); a value that is a JSON object or list is one, `true`, `false` and `null` are
themselves, and a number is a number where the file system's constructor has a number as default.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from stoker.executor.under_stores.base import UnderStoreError, one_line

SECRET_BYTES_MAX = 64 * 1024
_SECRET_BYTES_MIN = 4  # shorter values would blank out ordinary words
_SECRET_NAME = re.compile(r"secret|password|passwd|token|credential|key|auth|signature|sas", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY_SECRET = re.compile(
    r"([?&][^=&\s]*(?:signature|credential|token|secret|password|access-?_?key|api-?_?key|sig)=)[^&\s'\"]+",
    re.IGNORECASE,
)
_WORDS = {"true": True, "false": False, "null": None}


class Redactor:
    """Takes secrets out of text. Knows the values it must not let through."""

    def __init__(self, secrets: set[str]) -> None:
        self._secrets = sorted((s for s in secrets if len(s) >= _SECRET_BYTES_MIN), key=len, reverse=True)

    def __call__(self, text: object) -> str:
        """Return `text` as one line without secrets."""
        line = str(text)
        for secret in self._secrets:
            line = line.replace(secret, "***")
        line = _USERINFO.sub("***@", line)
        return one_line(_QUERY_SECRET.sub(r"\1***", line))


class Options:
    """Resolved options of one source. `values` are for the file system's constructor; `redact` cleans every message."""

    def __init__(self, options: Mapping[str, str]) -> None:
        """Resolve `options`. :raises UnderStoreError: a reference leads nowhere."""
        self._secrets: set[str] = set()
        self.values: dict[str, Any] = {}
        for name, text in options.items():
            self._place(name, self._resolve(name, text))
        self.redact = Redactor(self._secrets)

    def typed_for(self, constructor: Any) -> dict[str, Any]:
        """Return the values, with numbers where `constructor` has a number as default."""
        defaults = _number_defaults(constructor)
        return {name: _as_number(name, value, defaults) for name, value in self.values.items()}

    def _place(self, name: str, value: Any) -> None:
        *parents, last = name.split(".")
        where = self.values
        for parent in parents:
            where = where.setdefault(parent, {})
            if not isinstance(where, dict):
                raise UnderStoreError(f"option {name!r} is inside {parent!r}, which has a plain value too")
        where[last] = value

    def _resolve(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._resolve(f"{name}.{key}", inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._resolve(name, inner) for inner in value]
        if not isinstance(value, str):
            return value
        if value.startswith("env:"):
            return self._secret(_from_environment(name, value[4:]))
        if value.startswith("file:"):
            return self._secret(_from_file(name, value[5:]))
        if value in _WORDS:
            return _WORDS[value]
        if value[:1] in ("{", "["):
            return self._resolve(name, _from_json(name, value))
        if _SECRET_NAME.search(name):
            self._secrets.add(value)
        return value

    def _secret(self, value: str) -> str:
        self._secrets.add(value)
        return value


def _from_environment(name: str, variable: str) -> str:
    value = os.environ.get(variable)
    if value is None:
        raise UnderStoreError(
            f"option {name!r} wants the environment variable {variable!r}, which is not set here: set it for the "
            "schedulers and name it in --executor-env for the executors"
        )
    return value


def _from_file(name: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            value = file.read(SECRET_BYTES_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UnderStoreError(
            f"option {name!r} wants the file {path!r}, which cannot be read here: {reason}"
        ) from error
    if len(value) > SECRET_BYTES_MAX:
        raise UnderStoreError(f"option {name!r}: the file {path!r} has more than {SECRET_BYTES_MAX} bytes")
    return value.strip("\r\n")


def _from_json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise UnderStoreError(f"option {name!r} looks like JSON but is not: {error}") from error


def _number_defaults(constructor: Any) -> dict[str, type]:
    try:
        parameters = inspect.signature(constructor).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: type(p.default) for p in parameters if type(p.default) in (int, float)}


def _as_number(name: str, value: Any, defaults: dict[str, type]) -> Any:
    if name not in defaults or not isinstance(value, str):
        return value
    try:
        return defaults[name](value)
    except ValueError as error:
        raise UnderStoreError(f"option {name!r} must be a number, not {value!r}") from error
