"""Any order of calls against a model: what was acknowledged is what the next leader finds."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from support.journals import JOURNAL_FACTORIES, JournalFactory, replay

EXAMPLES = {"local": 30, "zookeeper": 12}
RECORDS = st.lists(st.binary(max_size=40), min_size=1, max_size=6)


class JournalModel(RuleBasedStateMachine):
    """Holds what the journal must hold: all records, the newest snapshot, the blobs."""

    home = ""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.factory: JournalFactory = JOURNAL_FACTORIES[self.home](Path(self.folder.name))
        self.records: list[bytes] = []
        self.snapshot: tuple[int, bytes | None] = (0, None)
        self.blobs: dict[str, bytes] = {}
        self.epoch = 0
        self.journal = self.factory.open()
        self._lead()

    def _lead(self) -> None:
        found = self.journal.lead()
        assert found.epoch > self.epoch
        self.epoch = found.epoch
        assert (found.snapshot_index, found.snapshot) == self.snapshot
        assert replay(found) == self.records[found.snapshot_index :]

    @rule(records=RECORDS)
    def append(self, records: list[bytes]) -> None:
        self.journal.append(len(self.records), records)
        self.records += records

    @rule(back=st.integers(0, 5), data=st.binary(max_size=100))
    def write_snapshot(self, back: int, data: bytes) -> None:
        index = max(self.snapshot[0], len(self.records) - back)
        if index:
            self.journal.write_snapshot(index, data)
            self.snapshot = (index, data)

    @rule(data=st.binary(max_size=100))
    def put_blob(self, data: bytes) -> None:
        self.blobs[self.journal.put_blob(data)] = data

    @rule(data=st.data())
    def delete_blob(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from([*self.blobs, hashlib.sha256(b"no such").hexdigest()]))
        self.journal.delete_blob(digest)
        self.blobs.pop(digest, None)
        assert self.journal.get_blob(digest) is None

    @rule()
    def fail_over(self) -> None:
        self.journal.close()
        self.journal = self.factory.open()
        self._lead()

    @invariant()
    def blobs_are_there(self) -> None:
        for digest, data in getattr(self, "blobs", {}).items():
            assert self.journal.get_blob(digest) == data

    def teardown(self) -> None:
        if hasattr(self, "factory"):
            self.fail_over()
            self.factory.close()
            self.folder.cleanup()


@pytest.mark.parametrize("home", sorted(JOURNAL_FACTORIES))
def test_any_order_of_calls(home: str) -> None:
    class Model(JournalModel):
        pass

    Model.home = home
    run_state_machine_as_test(
        Model, settings=settings(max_examples=EXAMPLES[home], stateful_step_count=25, deadline=None)
    )
