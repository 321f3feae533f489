"""What can go wrong inside an executor; each leaf says who can act on it."""

from __future__ import annotations


class ExecutorError(Exception):
    """Base of all errors of this package."""


class ConfigError(ExecutorError):
    """The environment this process was started with is wrong; the text lists every fault. The starter must mend it."""


class ChannelError(ExecutorError):
    """Another process of this executor sent what is not a message: a mistake of ours. The executor must end."""


class TierFull(ExecutorError):
    """A block does not fit the tier; nothing was allocated. Evict first, or serve without keeping."""


class ManifestUnavailable(ExecutorError):
    """No scheduler gave the manifest of a dataset version; to be tried again later."""
