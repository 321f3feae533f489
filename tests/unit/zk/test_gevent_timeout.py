"""kazoo's timeout under gevent is a BaseException: no `except Exception` sees it. It ends nothing of ours, and never leaves the session."""

from __future__ import annotations

import gevent
import pytest
from gevent import socket
from kazoo.handlers.gevent import SequentialGeventHandler

from stoker.zk.client import make_client
from stoker.zk.errors import Unavailable
from stoker.zk.home import open_home
from stoker.zk.paths import ZkUrl
from stoker.zk.session import AnswerLost, Session

TIMED_OUT = SequentialGeventHandler.timeout_exception


class TimedOut:
    """The result of a request that kazoo gave up."""

    def ready(self) -> bool:
        return True

    def get(self, block: bool) -> None:
        raise TIMED_OUT("too late")


def test_it_is_no_exception_of_the_usual_kind() -> None:
    """If a newer kazoo mends this, what we do about it may go."""
    assert issubclass(TIMED_OUT, gevent.Timeout) and not issubclass(TIMED_OUT, Exception)


def test_a_request_that_kazoo_gives_up_is_one_whose_answer_was_lost() -> None:
    place = ZkUrl((("127.0.0.1", 1),), "/stoker")
    client = make_client(place, session_timeout_ms=1_000, gevent=True)
    session = Session(
        place, member="", candidate="c", owner="", session_timeout_ms=1_000, gevent=True, client=client
    )
    with pytest.raises(AnswerLost):
        session.finish((TimedOut(), 0))


def test_a_server_that_accepts_and_never_answers_is_an_error_like_any_other() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        home = open_home(
            f"zk://127.0.0.1:{silent.getsockname()[1]}/stoker",
            member="m",
            owner="o",
            session_timeout_ms=1_000,
            gevent=True,
        )
        with pytest.raises(Unavailable, match="no ZooKeeper server can be reached"):
            gevent.spawn(home.start).get(timeout=60)
