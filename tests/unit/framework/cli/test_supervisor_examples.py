"""The files in examples/ that run a scheduler under a supervisor: what they say is what `stoker scheduler` takes."""

from __future__ import annotations

import json
import pathlib
import re
import shlex

from stoker.framework.cli.clusters import scheduler

EXAMPLES = pathlib.Path(__file__).parents[4] / "examples"
OPTIONS = "--role cache --instances 20 --mem 64GiB --disk 1TiB --allow-source s3://datasets/"


def options_of(command: str) -> dict[str, object]:
    """Return what click makes of a whole command line of `stoker scheduler`."""
    words = shlex.split(command.removeprefix("exec "))
    assert words[:2] == ["/opt/stoker/bin/stoker", "scheduler"], words[:2]
    with scheduler.make_context("scheduler", words[2:]) as context:
        return context.params


def test_the_unit_of_systemd_starts_a_scheduler() -> None:
    text = (EXAMPLES / "systemd" / "stoker-scheduler.service").read_text()
    told = dict(re.findall(r"^#\s+(STOKER_[A-Z]+)=(.*)$", text, re.MULTILINE))
    assert told["STOKER_OPTIONS"] == OPTIONS
    start = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert start is not None
    command = start[1].replace("\\\n", " ").replace("%H", "host").replace("%d", "/run/credentials")
    for name, value in told.items():
        command = command.replace("${" + name + "}", value).replace(f"${name}", value)
    options = options_of(command)
    assert "$" not in command and options["zk_secret"] == "file:/run/credentials/zk"
    assert options["master"] == "zk://zk1:2181,zk2:2181,zk3:2181/mesos"
    section = text[text.index("[Service]") :]
    assert "KillSignal=SIGTERM" in section and "RestartPreventExitStatus=2" in section


def test_the_app_of_marathon_starts_a_scheduler() -> None:
    app = json.loads((EXAMPLES / "marathon" / "stoker-scheduler.json").read_text())
    command = app["cmd"].replace("$PORT0", "31000").replace("$HOST", "host")
    options = options_of(command)
    assert "$" not in command and options["advertise"] == "host:31000"
    for name in ("zk_secret", "secret"):
        kind, _, variable = str(options[name]).partition(":")
        assert kind == "env" and variable in app["env"]
    assert app["healthChecks"][0]["path"] == "/alive", "a follower is healthy too"
    assert app["constraints"] == [["hostname", "UNIQUE"]]
