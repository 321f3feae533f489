"""What can go wrong with a journal; each leaf says who can act on it."""

from __future__ import annotations


class JournalError(Exception):
    """Base of all errors of this package."""


class Fenced(JournalError):
    """A newer leader owns the journal: this one must step down. Nothing was written."""


class Unavailable(JournalError):
    """The journal cannot be reached or written now; whether the last append happened may be unknown. Lead no more."""


class TooLarge(JournalError):
    """A record or blob is above our own limit; the text names it. Nothing was sent."""


class Corrupt(JournalError):
    """What is stored cannot be trusted (a checksum, a gap): an operator must look. Nothing was changed."""


class Incomplete(Corrupt):
    """A part of the journal was deleted: an operator must bring a backup back. Nothing was changed."""


class TooNew(JournalError):
    """The stored format is newer than this program: upgrade it. Nothing was changed."""


class Locked(JournalError):
    """Another process of this machine has this journal open; the text names it."""


class Denied(JournalError):
    """The place of the journal does not let us in: an operator must see to the rights or the secret. Nothing was changed."""
