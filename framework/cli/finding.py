"""`zk://` in place of `http://`: the schedulers are found where they elect their leader.

Only here: programs that read data never speak to ZooKeeper, so `stoker.Client` takes http:// URLs alone.
"""

from __future__ import annotations

import importlib.util
import logging
import os

from stoker.zk.errors import JournalError
from stoker.zk.paths import ZkUrl, parse_journal_url

SECRET_VARIABLE = "STOKER_ZK_SECRET"


class NotFound(OSError):
    """No scheduler can be found there; the text says why and what to do."""


def resolve_url(url: str) -> str:
    """Return `url`, or for `zk://HOST:PORT,.../PATH` the http:// URL of the schedulers that are candidates there now.

    :raises ValueError: it is zk://, and not of that form. :raises NotFound: nobody is there, or ZooKeeper cannot say.
    """
    if not url.startswith("zk://"):
        return url
    if importlib.util.find_spec("kazoo") is None:
        raise NotFound(
            "zk:// needs more packages: pip install 'stoker[cluster]', or write http://HOST:PORT,HOST:PORT"
        )
    place = parse_journal_url(url)
    assert isinstance(place, ZkUrl)
    members = _members(place)
    if not members:
        raise NotFound(
            f"no scheduler is in the election at {place.path}: start one with `stoker scheduler --zk`"
        )
    others = [m for m in members if not m.startswith("http://")]
    if others:
        raise NotFound(f"{others[0]!r} in the election at {place.path} is no scheduler of this version")
    return "http://" + ",".join(member.removeprefix("http://") for member in members)


def _members(place: ZkUrl) -> tuple[str, ...]:
    from kazoo.exceptions import NoNodeError  # it is in [cluster] alone

    from stoker.zk.zookeeper_onlooker import open_session, read_members

    logging.getLogger("stoker.zk").addHandler(
        logging.NullHandler()
    )  # what went wrong comes back as one error
    secret = os.environ.get(SECRET_VARIABLE, "")
    session = open_session(place, owner="", secret=secret, gevent=False)
    try:
        session.start()
        return read_members(session)
    except NoNodeError:
        return ()
    except JournalError as error:
        raise NotFound(f"the schedulers cannot be found in ZooKeeper: {error}") from error
    finally:
        session.close()
