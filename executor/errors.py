"""What can go wrong inside an executor; each leaf says who can act on it."""

from __future__ import annotations


class ExecutorError(Exception):
    """Base of all errors of this package."""


class ConfigError(ExecutorError):
    """The environment this process was started with is wrong; the text lists every fault. The starter must mend it."""


class ChannelError(ExecutorError):
    """Another process of this executor sent what is not a message: a mistake of ours. The executor must end."""


class FileBroken(ExecutorError):
    """A block's file could not be written or read back. The keeper must drop the block."""


class DirectoryRefused(ExecutorError):
    """The SSD tier's directory is not for this executor. Whoever runs the agents must give it another, or empty it."""


class DirectoryHeld(ExecutorError):
    """Another keeper has the SSD tier's directory, maybe one that is about to end. Try again."""


class ManifestUnavailable(ExecutorError):
    """No scheduler gave the manifest of a dataset version. `is_gone`: there is none any more; else try again later."""

    def __init__(self, text: str, *, is_gone: bool = False) -> None:
        super().__init__(text)
        self.is_gone = is_gone
