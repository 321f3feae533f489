"""How a leadership's end becomes the process' end."""

from __future__ import annotations

import json
import logging
import pathlib
from typing import Any

import pytest
from gevent.event import AsyncResult

from stoker.framework.config import Config
from stoker.framework.daemon import Daemon, main
from stoker.framework.errors import Fatal
from stoker.framework.loop import Crashed
from stoker.zk.errors import Fenced


class EndedLeadership:
    def __init__(self, error: BaseException) -> None:
        self.loop = self
        self.ended: AsyncResult = AsyncResult()
        self.ended.set(error)

    def story(self) -> list[str]:
        return ["event=1 Ticked", "event=2 TaskUpdated"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"zk_secret": "env:NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
        ({"zk_secret": "no-user"}, "USER:SECRET is wanted"),
        ({"zk_secret": "file:/nowhere"}, "cannot read /nowhere"),
    ],
)
def test_a_secret_that_is_none_is_a_wrong_configuration(
    fields: dict[str, str], says: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config"
    path.write_text(json.dumps({"master": "h:1", "journal": "zk://h:1/stoker"} | fields))
    assert main(["--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("stoker scheduler: --zk: ") and says in said and len(said.splitlines()) == 1


def end(error: BaseException) -> Any:
    daemon = Daemon(Config(master="h:1", journal="file:/nowhere"), "")
    daemon._raise_end(EndedLeadership(error))  # type: ignore[arg-type]


def test_a_mistake_of_our_own_is_told_with_the_last_events(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    crashed = Crashed("KeyError: 'slot'")
    crashed.__cause__ = KeyError("slot")
    with pytest.raises(Fatal, match="our mistake"):
        end(crashed)
    assert "event=2 TaskUpdated" in caplog.text and "KeyError: 'slot'" in caplog.text


@pytest.mark.parametrize("error", [Fenced("epoch 9 leads"), Fatal("Mesos refused this framework")])
def test_other_ends_are_passed_on(error: Exception) -> None:
    with pytest.raises(type(error)):
        end(error)
