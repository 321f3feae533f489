"""The guard of an empty journal: when a scheduler may begin, and what it says while it may not."""

from __future__ import annotations

import pytest

from stoker.framework.config import Config
from stoker.framework.guard import Guard
from stoker.mesos.errors import CallFailed, HttpError, MesosError
from stoker.mesos.operator import KnownFramework


class FakeMaster:
    """Answers what it is told to; `error` instead, if there is one."""

    def __init__(
        self,
        *known: KnownFramework,
        missing: tuple[str, ...] = (),
        error: MesosError | None = None,
        version: str = "1.11.0",
    ) -> None:
        self._version = version
        self.known = list(known)
        self.missing = list(missing)
        self.error = error
        self.asked = 0

    def frameworks(self) -> list[KnownFramework]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.known

    def missing_agents(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return self.missing

    def version(self) -> str:
        return self._version


def known(
    framework_id: str = "F1", *, name: str = "stoker", role: str = "cache", away: bool = False
) -> KnownFramework:
    return KnownFramework(framework_id, name, (role,), not away)


def guard(master: FakeMaster, *, new: bool = False) -> Guard:
    return Guard(lambda: master, name="stoker", is_new_cluster=new)


def test_a_master_that_knows_nothing_of_us_lets_a_new_cluster_begin() -> None:
    assert guard(FakeMaster()).reason_to_wait() == ""


def test_a_master_that_is_too_old_gets_no_framework_that_nobody_would_remember() -> None:
    reason = guard(FakeMaster(version="1.4.0")).reason_to_wait()
    assert "its version is 1.4.0: Mesos 1.9 or newer is needed" in reason and "upgrade the masters" in reason


@pytest.mark.parametrize("other", ["spark", "stoker-2", "Stoker", ""])
def test_frameworks_of_another_name_are_none_of_our_business(other: str) -> None:
    assert guard(FakeMaster(known(name=other))).reason_to_wait() == ""


@pytest.mark.parametrize("told", [None, "cache", "of-old"])
@pytest.mark.parametrize("role", ["*", "cache", "set-later"])
def test_a_framework_of_our_name_is_waited_for_in_whatever_role(told: str | None, role: str) -> None:
    """Its role is in the journal, by `fleet set`, and the journal is gone: the options need not know it."""
    config = Config(master="h:5050", journal="zk://h:2181/stoker", role=told)
    asked = Guard.of(config, "", master=lambda: FakeMaster(known(role=role)))
    reason = asked.reason_to_wait()
    assert f"framework F1 (connected, role {role})" in reason
    assert "--new-cluster" in reason and "another --name" in reason


@pytest.mark.parametrize("away", [False, True])
def test_a_framework_of_our_name_is_waited_for(away: bool) -> None:
    reason = guard(FakeMaster(known(away=away))).reason_to_wait()
    assert "framework F1 " in reason and ("away" if away else "connected") in reason
    assert "stoker journal restore" in reason and "--new-cluster" in reason


def test_all_roles_of_a_framework_are_told() -> None:
    ours = KnownFramework("F1", "stoker", ("x", "cache"), True)
    assert "F1 (connected, roles x, cache)" in guard(FakeMaster(ours)).reason_to_wait()


def test_a_reason_names_a_few_frameworks_and_counts_the_rest() -> None:
    reason = guard(FakeMaster(*(known(f"F{i}") for i in range(50)))).reason_to_wait()
    assert "F1 (connected, role cache), F2 (connected, role cache) and 47 more" in reason
    assert "F3 " not in reason


@pytest.mark.parametrize(
    "error",
    [CallFailed("h:5050: refused"), HttpError(401, "no", about="x"), HttpError(403, "no", about="x")],
)
def test_a_master_that_cannot_be_asked_is_waited_for_with_its_reason(error: MesosError) -> None:
    reason = guard(FakeMaster(error=error)).reason_to_wait()
    assert str(error) in reason and "--new-cluster" in reason


def test_a_master_that_does_not_know_its_agents_yet_is_waited_for() -> None:
    reason = guard(FakeMaster(missing=("S1", "S2"))).reason_to_wait()
    assert "waits for 2 agents" in reason


def test_a_new_cluster_asks_nobody() -> None:
    master = FakeMaster(known())
    assert guard(master, new=True).reason_to_wait() == "" and master.asked == 0


def test_the_reason_is_asked_anew_each_time_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    master = FakeMaster(known())
    asked = guard(master)
    with caplog.at_level("INFO", logger="stoker.framework.guard"):
        assert asked.reason_to_wait() and asked.reason_to_wait()
        master.known.clear()
        assert asked.reason_to_wait() == ""
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
