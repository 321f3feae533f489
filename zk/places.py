"""From a journal's URL to who reads it, or restores it, there."""

from __future__ import annotations

from stoker.zk.local_onlooker import LocalOnlooker
from stoker.zk.onlooker import Onlooker
from stoker.zk.paths import FileUrl, parse_journal_url
from stoker.zk.restore import LocalTarget, Target


def open_onlooker(url: str, *, secret: str = "") -> Onlooker:
    """Return what reads the journal that `url` names; nothing is touched yet. `secret`: see home.open_home.

    :raises ValueError: the URL or the secret is none; no message holds the secret.
    """
    place = parse_journal_url(url)
    if isinstance(place, FileUrl):
        return LocalOnlooker(place.directory)
    from stoker.zk.zookeeper_onlooker import ZooKeeperOnlooker  # kazoo is not needed for a local journal

    return ZooKeeperOnlooker(place, secret=secret)


def open_target(url: str, *, owner: str, secret: str = "") -> Target:
    """Return what restores a journal at `url`; nothing is touched yet. `owner` says to people who has the place.

    :raises ValueError: see `open_onlooker`.
    """
    place = parse_journal_url(url)
    if isinstance(place, FileUrl):
        return LocalTarget(place.directory, owner=owner)
    from stoker.zk.zookeeper_target import ZooKeeperTarget

    return ZooKeeperTarget(place, owner=owner, secret=secret)
