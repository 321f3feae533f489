"""A Mesos whose ACLs do not allow our role: one clear line with the way out, and a journal that is as good as before."""

from __future__ import annotations

import pathlib
import threading

import pytest

from support.fake_mesos import FakeMesos, subscribed
from support.schedulers import scheduler_process
from support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.integration

REFUSAL = "Not authorized to use roles '{ cache }'"


def test_a_role_without_permission_ends_the_scheduler_with_the_way_out(tmp_path: pathlib.Path) -> None:
    """The master answers 200 and then an ERROR, as to all that is wrong with a FrameworkInfo (rule 2 of the recordings)."""
    with FakeMesos() as master:
        config = {
            "master": master.address,
            "journal": f"file:{tmp_path / 'journal'}",
            "instances": 0,
            "mem_bytes": 64 << 20,
            "role": "cache",
            "principal": "stoker",
            "secret": "s3cret",
            "new_cluster": True,
        }
        with scheduler_process(config, tmp_path / "log") as refused:
            stream = master.wait_stream()
            assert stream.call.body["subscribe"]["framework_info"]["roles"] == ["cache"]
            stream.send({"type": "ERROR", "error": {"message": REFUSAL}})
            stream.end()
            assert refused.child.wait(DEADLINE_S) == 1
        assert refused.said().splitlines()[-1] == (
            f"stoker scheduler: Mesos refused this framework (id none yet): {REFUSAL}: let its ACLs allow this --principal "
            "to register with this --role, or give others; nothing was changed"
        )
        assert "Traceback" not in refused.said() and "s3cret" not in refused.said()
        assert [call.type for call in master.calls if call.path == "/api/v1/scheduler"] == ["SUBSCRIBE"]

        with scheduler_process(config, tmp_path / "log2") as allowed:  # the ACLs were mended
            answer = threading.Thread(target=lambda: master.wait_stream(2).send(subscribed()))
            answer.start()
            api = allowed.wait_leading()
            answer.join()
            wait_until(lambda: api.get("/v1/leader")["framework_id"] == "F1", "the framework's id")
            assert allowed.stop() == 0
    assert "TEARDOWN" not in [call.type for call in master.calls]
