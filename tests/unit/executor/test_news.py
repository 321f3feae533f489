"""Nobody who waits for a change is forgotten, also not who waits again while others are told."""

from __future__ import annotations

import gevent

from stoker.executor.news import News

PATIENCE_S = 5.0


def test_turns_that_end_while_others_are_told_are_told_too() -> None:
    """Each waits for its turn and then tells; all but one are woken too early and wait again."""
    news, ended = News(), list[int]()

    def run(number: int) -> None:
        while len(ended) < number:
            with gevent.Timeout(PATIENCE_S):
                news.wait(2 * PATIENCE_S)
        ended.append(number)
        news.tell()

    waiting = [gevent.spawn(run, number) for number in reversed(range(1, 12))]
    gevent.idle()
    ended.append(0)
    news.tell()
    gevent.joinall(waiting, raise_error=True)
    assert ended == list(range(12))
