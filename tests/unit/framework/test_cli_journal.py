"""`stoker journal`, as people run it: real processes, real files, a real ZooKeeper where there is one."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from stoker.framework.cli.journal_backup import AHEAD_MIN
from stoker.framework.cli.main import main
from stoker.framework.snapshots import encode_snapshot
from stoker.zk import restore, zookeeper_blobs
from stoker.zk.backup import About, BackupWriter
from stoker.zk.codec import BATCH_MAGIC, LEVEL_MAX
from stoker.zk.home import open_home
from stoker.zk.local import LocalJournal
from stoker.zk.onlooker import read_state
from support.journal_life import CLUSTER, FRAMEWORK_ID, SECRET, JournalLife, whole_life
from support.journals import shared_client
from support.onlookers import PLACES, Place, looking, make_place, state_of
from support.zookeeper import WHY_NOT, shared_server

COMMAND = [
    sys.executable,
    "-c",
    "from stoker.framework.cli.main import main; main(prog_name='stoker')",
    "journal",
]
RECORDS = 16  # of `whole_life`, in seven batches


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Place]:
    yield from make_place(request.param, tmp_path)


@pytest.fixture
def local(tmp_path: pathlib.Path) -> Iterator[Place]:
    yield from make_place("local", tmp_path)


def flag(place: Place) -> list[str]:
    return ["--journal" if place.is_local else "--zk", place.url]


class Done(NamedTuple):
    returncode: int
    stdout: bytes
    stderr: bytes


def run(*arguments: str, stdin: bytes = b"") -> Done:
    """Run the command in this process; those that a process of its own matters for have one."""
    result = CliRunner().invoke(main, ["journal", *arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout_bytes, result.stderr_bytes)


def run_process(*arguments: str, stdin: bytes = b"") -> Done:
    done = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=120, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def succeed(*arguments: str) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def refused(*arguments: str, status: int = 1) -> str:
    """Return the one line that a command says on its failure."""
    done = run(*arguments)
    said = done.stderr.decode()
    assert done.returncode == status, (done.returncode, done.stdout.decode(), said)
    assert "Traceback" not in said and said.strip()
    if status == 1:
        assert len(said.splitlines()) == 1 and said.startswith("stoker: ")
    return said


# --- inspect


def test_inspect_tells_what_a_journal_is_and_what_it_holds(place: Place) -> None:
    life = whole_life(place.leader())
    assert life.next_index == RECORDS
    text = succeed("inspect", *flag(place))
    head, _, body = text.partition("\n\n")
    facts = {line[:13].strip(): line[13:] for line in head.splitlines()}
    assert facts["journal"] == place.url and facts["epoch"] == "1, level 1"
    assert facts["cluster"] == CLUSTER.hex() and facts["framework id"] == FRAMEWORK_ID
    assert (facts["datasets"], facts["jobs"], facts["slots"]) == ("2", "1", "2")
    assert facts["records"] == "0 to 15" and "test" in facts["open now"] and facts["snapshots"] == "none"
    lines = body.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(RECORDS))
    assert "ClusterCreated" in lines[0] and "name=stoker" in lines[0] and "2027-01-15T08:00:00Z" in lines[0]
    assert "name=images" in text and SECRET not in text


def test_inspect_json_is_one_object_a_line(place: Place) -> None:
    whole_life(place.leader())
    entries = [json.loads(line) for line in succeed("inspect", *flag(place), "--json").splitlines()]
    assert [entry["index"] for entry in entries] == list(range(RECORDS))
    assert all(entry.keys() == {"index", "epoch", "kind", "fields"} for entry in entries)
    assert entries[0]["fields"] == {"cluster": CLUSTER.hex(), "name": "stoker", "wall_ms": 1_800_000_000_000}
    listed = next(entry for entry in entries if entry["kind"] == "DatasetListed")
    assert listed["fields"]["manifested"]["files"] == 20
    assert SECRET not in json.dumps(entries)


@pytest.mark.parametrize(
    ("options", "indexes"),
    [
        (["--last", "2"], [14, 15]),
        (["--last", "1000"], list(range(RECORDS))),
        (["--from", "13"], [13, 14, 15]),
        (["--from", "16"], []),
        (["--from", "1000"], []),
    ],
)
def test_inspect_shows_as_many_records_as_asked_for(
    local: Place, options: list[str], indexes: list[int]
) -> None:
    whole_life(local.leader())
    lines = succeed("inspect", *flag(local), "--json", *options).splitlines()
    assert [json.loads(line)["index"] for line in lines] == indexes


def test_inspect_of_a_header_alone(place: Place) -> None:
    life = whole_life(place.leader())
    life.snapshot()
    life.change(1, priority=3)
    header = json.loads(succeed("inspect", *flag(place), "--header", "--json"))
    assert header["next_index"] == RECORDS + 1 and header["snapshots"] == [RECORDS]
    assert header["datasets"] == 2 and header["framework_id"] == FRAMEWORK_ID and header["members"]
    assert not succeed("inspect", *flag(place), "--header").partition("\n\n")[2]


def test_inspect_of_a_damaged_journal_shows_what_is_good(local: Place, tmp_path: pathlib.Path) -> None:
    life = whole_life(local.leader())
    life.journal.close()
    damage(tmp_path, batch=3)
    done = run("inspect", *flag(local))
    text = done.stdout.decode()
    assert done.returncode == 1 and "damaged" in text.partition("\n\n")[0]
    assert "is damaged at byte" in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1


def test_a_reader_that_goes_away_is_no_error_of_ours(local: Place) -> None:
    life = whole_life(local.leader())
    for number in range(2_000):
        life.change(1, priority=number % 7)
    first = subprocess.run(
        f"{' '.join(map(repr, COMMAND))} inspect --journal {local.url} --json | head -1",
        shell=True,
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert json.loads(first.stdout)["index"] == 0 and first.stderr == b""


def test_a_restored_journal_that_nobody_led_yet_has_no_records(place: Place, tmp_path: pathlib.Path) -> None:
    whole_life(place.leader())
    succeed("backup", *flag(place), str(tmp_path / "saved"))
    (elsewhere,) = make_places(place, tmp_path / "elsewhere")
    succeed("restore", *flag(elsewhere), str(tmp_path / "saved"))
    text = succeed("inspect", *flag(elsewhere), "--header")
    assert f"none since the snapshot; {RECORDS + 1} comes next" in text or f"{RECORDS} to {RECORDS}" in text


# --- verify


def damage(tmp_path: pathlib.Path, *, batch: int) -> None:
    """Change a byte in the payload of a batch of the log."""
    (segment,) = (tmp_path / "journal" / "log").glob("*.log")
    data = bytearray(segment.read_bytes())
    at = -1
    for _ in range(batch + 1):
        at = data.index(BATCH_MAGIC, at + 1)
    data[at + 45] ^= 0xFF
    segment.write_bytes(data)


def bad_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("BAD")]


def test_verify_says_of_each_thing_that_it_is_good(place: Place) -> None:
    life = whole_life(place.leader())
    life.snapshot()
    life.change(1, priority=1)
    text = succeed("verify", *flag(place))
    assert all(line.startswith("good") for line in text.splitlines())
    for word in ("header", "snapshot", "log", "state", "blobs"):
        assert f"good  {word}" in text
    report = json.loads(succeed("verify", *flag(place), "--json"))
    assert report["ok"] and all(check["ok"] for check in report["checks"])


def test_verify_replays_from_the_oldest_snapshot_to_the_newest(local: Place) -> None:
    life = whole_life(local.leader())
    life.snapshot()
    life.change(1, priority=1)
    life.snapshot()
    life.change(1, priority=2)
    assert "leads to exactly what 1 later snapshot holds" in succeed("verify", *flag(local))


def test_verify_finds_a_snapshot_that_is_not_what_the_records_say(local: Place) -> None:
    life = whole_life(local.leader())
    other = JournalLife(LocalJournal(local.url.removeprefix("file:") + "-other", owner="other"))
    other.begin()
    other.journal.close()
    life.journal.write_snapshot(life.next_index, encode_snapshot(other.catalog))
    done = run("verify", *flag(local))
    assert done.returncode == 1
    assert "is not what the records before it lead to" in "".join(bad_lines(done.stdout.decode()))


def test_verify_finds_damage_in_the_log(local: Place, tmp_path: pathlib.Path) -> None:
    life = whole_life(local.leader())
    life.journal.close()
    damage(tmp_path, batch=2)
    done = run("verify", *flag(local))
    (line,) = bad_lines(done.stdout.decode())
    assert done.returncode == 1 and "log" in line and "damaged at byte" in line


def test_verify_finds_blobs_that_are_gone_or_changed(place: Place, tmp_path: pathlib.Path) -> None:
    life = whole_life(place.leader())
    root, *parts = life.add_dataset("more", files=500)
    life.journal.delete_blob(parts[0])
    done = run("verify", *flag(place))
    (line,) = bad_lines(done.stdout.decode())
    assert done.returncode == 1 and f"blob {parts[0]} is missing" in line and "'more' version 1" in line
    life.journal.delete_blob(root)
    done = run("verify", *flag(place))
    assert f"blob {root} is missing" in done.stdout.decode()
    if place.is_local:
        path = tmp_path / "journal" / "blobs" / root[:2] / root
        path.write_bytes(b"something else")
        done = run("verify", *flag(place))
        assert "another digest" in done.stdout.decode() and done.returncode == 1


@pytest.mark.skipif("zookeeper" not in PLACES, reason=WHY_NOT)
def test_verify_names_the_record_that_is_missing_from_the_log(tmp_path: pathlib.Path) -> None:
    place = next(places := make_place("zookeeper", tmp_path))
    whole_life(place.leader())
    client, log = shared_client(), f"/{place.url.partition('//')[2].partition('/')[2]}/log"
    names = sorted(client.get_children(log))
    client.delete(f"{log}/{names[1]}")
    done = run("verify", *flag(place))
    assert done.returncode == 1
    assert f"record {int(names[1])} is missing" in "".join(bad_lines(done.stdout.decode()))
    next(places, None)


def test_verify_says_that_an_unfinished_write_was_never_acknowledged(
    local: Place, tmp_path: pathlib.Path
) -> None:
    life = whole_life(local.leader())
    life.journal.close()
    (segment,) = (tmp_path / "journal" / "log").glob("*.log")
    data = segment.read_bytes()
    segment.write_bytes(data[:-3])
    text = succeed("verify", *flag(local))
    assert "were never acknowledged" in text and "records 0 to 12" in text


# --- backup and restore


def is_ahead(epoch: int, of: int) -> bool:
    """Say whether a restored journal's epoch is what it must be: ahead by a constant and the seconds that went by."""
    return of + AHEAD_MIN <= epoch < of + AHEAD_MIN + 100_000


def test_a_backup_is_checked_without_a_journal(local: Place, tmp_path: pathlib.Path) -> None:
    whole_life(local.leader())
    succeed("backup", *flag(local), str(tmp_path / "saved"))
    assert "good  file" in succeed("restore", "--check", str(tmp_path / "saved"))
    assert "say where the journal is" in refused("restore", str(tmp_path / "saved"), status=2)
    (tmp_path / "saved").write_bytes(b"SKBACKUP")
    assert run("restore", "--check", str(tmp_path / "saved")).returncode == 1


def test_a_backup_brings_everything_back_elsewhere(place: Place, tmp_path: pathlib.Path) -> None:
    life = whole_life(place.leader())
    life.snapshot()
    life.change(1, priority=7)
    saved = tmp_path / "saved"
    said = succeed("backup", *flag(place), str(saved))
    assert FRAMEWORK_ID in said and "1 record" in said and saved.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".saved", "saved"))) == [
        "saved"
    ]
    (elsewhere,) = make_places(place, tmp_path / "elsewhere")
    said = succeed("restore", *flag(elsewhere), str(saved))
    assert f"at least {AHEAD_MIN:,} above" in said and CLUSTER.hex() in said
    header = json.loads(succeed("inspect", *flag(elsewhere), "--header", "--json"))
    assert is_ahead(header["epoch"], 1) and header["next_index"] == RECORDS + 1 + 1, (
        "no record of before has it"
    )
    assert (header["framework_id"], header["datasets"], header["jobs"]) == (FRAMEWORK_ID, 2, 1)
    assert header["cluster"] == CLUSTER.hex()
    assert "BAD" not in succeed("verify", *flag(elsewhere))


def make_places(place: Place, directory: pathlib.Path) -> list[Place]:
    """Return another place of the same kind; its factory's journals are closed when the process ends."""
    directory.mkdir()
    made = make_place("local" if place.is_local else "zookeeper", directory)
    _kept.append(made)
    return [next(made)]


_kept: list[Iterator[Place]] = []


def test_a_journal_goes_from_a_directory_to_zookeeper_and_back(tmp_path: pathlib.Path) -> None:
    if "zookeeper" not in PLACES:
        pytest.skip("no ZooKeeper")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir(), (tmp_path / "c").mkdir()
    kinds = [("local", "a"), ("zookeeper", "b"), ("local", "c")]
    made = [make_place(kind, tmp_path / name) for kind, name in kinds]
    first, second, third = (next(places) for places in made)
    life = whole_life(first.leader())
    for source, target in ((first, second), (second, third)):
        succeed("backup", *flag(source), str(tmp_path / "saved"))
        succeed("restore", *flag(target), str(tmp_path / "saved"))
    header = json.loads(succeed("inspect", *flag(third), "--header", "--json"))
    assert is_ahead(header["epoch"], 1 + AHEAD_MIN) and header["next_index"] == life.next_index + 2
    assert "BAD" not in succeed("verify", *flag(third))
    for places in made:
        next(places, None)


def test_backup_and_restore_go_through_pipes(local: Place, tmp_path: pathlib.Path) -> None:
    whole_life(local.leader())
    done = run_process("backup", *flag(local), "-")
    assert (
        done.returncode == 0 and done.stdout.startswith(b"SKBACKUP") and FRAMEWORK_ID in done.stderr.decode()
    )
    restored = run_process("restore", "--journal", f"file:{tmp_path / 'there'}", "-", stdin=done.stdout)
    assert restored.returncode == 0, restored.stderr
    assert "standard input: restored" in restored.stdout.decode()


def test_a_backup_beside_a_busy_leader_is_of_one_moment(place: Place, tmp_path: pathlib.Path) -> None:
    """Datasets come and go, and with them their blobs; snapshots cut the log."""
    life = whole_life(place.leader())
    stopped, failures = threading.Event(), []

    def write() -> None:
        try:
            for number in range(200):
                dataset_id = life.catalog.dataset_id_next
                digests = life.add_dataset(f"d{number}", files=5)
                if number % 2:
                    life.remove_dataset(dataset_id)
                    for digest in digests:
                        life.journal.delete_blob(digest)
                if number % 9 == 8:
                    life.snapshot()
                if stopped.is_set():
                    return
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(3):
            saved = tmp_path / f"saved{number}"
            succeed("backup", *flag(place), str(saved))
            text = succeed("restore", *flag(place), "--check", str(saved))
            assert "BAD" not in text and "whole" in text
            succeed("verify", *flag(place))
    finally:
        stopped.set()
        thread.join(60)
    assert not failures


def test_a_backup_that_cannot_be_made_leaves_no_file(local: Place, tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").mkdir()
    saved = tmp_path / "out" / "saved"
    assert "no journal" in refused("backup", *flag(local), str(saved))
    life = whole_life(local.leader())
    digests = life.add_dataset("more")
    life.journal.delete_blob(digests[1])
    assert f"its blob {digests[1]} is missing" in refused("backup", *flag(local), str(saved))
    assert list((tmp_path / "out").iterdir()) == []
    assert "No such file or directory" in refused("backup", *flag(local), str(tmp_path / "not" / "there"))
    for no_file in ("/dev/null", str(tmp_path)):
        assert "is no file" in refused("backup", *flag(local), no_file)
    assert pathlib.Path("/dev/null").is_char_device()


def test_an_empty_journal_is_not_backed_up(place: Place, tmp_path: pathlib.Path) -> None:
    place.leader().lead()
    assert "is empty" in refused("backup", *flag(place), str(tmp_path / "saved"))


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "source").mkdir()
    (source,) = list(_one("local", tmp_path / "source"))
    life = whole_life(source.leader())
    life.journal.close()
    succeed("backup", *flag(source), str(tmp_path / "saved"))
    return tmp_path / "saved"


def _one(kind: str, directory: pathlib.Path) -> Iterator[Place]:
    made = make_place(kind, directory)
    _kept.append(made)
    yield next(made)


def test_restore_refuses_a_damaged_backup_and_changes_nothing(
    place: Place, saved: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    data = saved.read_bytes()
    altered = data[:300] + bytes([data[300] ^ 1]) + data[301:]
    for wrong in (data[:-1], data[:100], b"", altered, b"no backup at all"):
        saved.write_bytes(wrong)
        done = run("restore", *flag(place), str(saved))
        assert done.returncode == 1 and "BAD" in done.stdout.decode(), done
        assert "no journal" in refused("inspect", *flag(place))
    assert "No such file" in refused("restore", *flag(place), str(tmp_path / "nothing"))


def test_restore_refuses_a_place_that_is_taken(place: Place, saved: pathlib.Path) -> None:
    life = whole_life(place.leader())
    life.change(1, priority=5)
    life.journal.close()
    before = looking(place, state_of)
    assert "--overwrite" in refused("restore", *flag(place), str(saved))
    assert looking(place, state_of) == before
    succeed("restore", *flag(place), "--overwrite", str(saved))
    header = json.loads(succeed("inspect", *flag(place), "--header", "--json"))
    assert header["next_index"] == life.next_index + 1 and is_ahead(header["epoch"], 1)


def writes_backup(path: pathlib.Path, place: Place, *, level: int) -> None:
    """Write the state that `place` holds as a backup of a journal of that level."""
    with path.open("wb") as file:
        writer = BackupWriter(file.write, About(1, level, "who led", place.url, 1))
        looking(place, lambda reader: [writer.add(part) for part in read_state(reader)])
        writer.end({})


def test_restore_over_a_journal_looks_first_whether_the_backup_fits(
    place: Place, saved: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was acknowledged would be gone, and nothing in its place."""
    life = whole_life(place.leader())
    life.change(1, priority=5)
    life.journal.close()
    before = looking(place, lambda reader: (state_of(reader), reader.blob_digests(), reader.header().term))
    (empty,) = make_places(place, tmp_path / "elsewhere")
    other = JournalLife(empty.leader())
    other.begin()
    other.journal.close()
    newer = tmp_path / "newer"
    writes_backup(newer, empty, level=LEVEL_MAX + 1)

    assert "upgrade it" in refused("restore", *flag(place), "--overwrite", str(newer))
    with monkeypatch.context() as small:
        small.setattr(restore, "SNAPSHOT_BYTES_MAX", 1_500)
        said = refused("restore", *flag(place), "--overwrite", str(saved))
        assert "at most 1500 are allowed" in said and "nothing was changed" in said
    if not place.is_local:
        with monkeypatch.context() as small:
            small.setattr(zookeeper_blobs, "BLOBS_BYTES_MAX", 100)
            said = refused("restore", *flag(place), "--overwrite", str(saved))
            assert "at most 100 are allowed in ZooKeeper" in said and "nothing was changed" in said
    after = looking(place, lambda reader: (state_of(reader), reader.blob_digests(), reader.header().term))
    assert after == before and place.leader().lead().epoch == 2


def test_restore_that_is_killed_is_done_again(place: Place, saved: pathlib.Path) -> None:
    """Wherever it is killed, what is there afterwards is nothing, or all of it; and never something to be led."""
    for delay_s in (0.2, 0.6, 0.9, 1.2):
        process = subprocess.Popen(
            [*COMMAND, "restore", *flag(place), str(saved)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    done = run("restore", *flag(place), str(saved))
    assert done.returncode == 0 or b"--overwrite" in done.stderr, done
    assert json.loads(succeed("inspect", *flag(place), "--header", "--json"))["next_index"] == RECORDS + 1
    assert "BAD" not in succeed("verify", *flag(place))


# --- whose it is


@pytest.fixture
def zookeeper_path() -> str:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    return f"/test-{uuid.uuid4().hex[:12]}/stoker"


def test_a_journal_with_an_owner_is_for_its_owner_alone(
    zookeeper_path: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = shared_server().address
    url, secret = f"zk://{server}{zookeeper_path}", tmp_path / "secret"
    secret.write_text("keeper:hush\n")
    home = open_home(url, member="m", owner="o", session_timeout_ms=20_000, secret=f"file:{secret}")
    home.start()
    home.join()
    assert home.wait_turn(60_000)
    whole_life(home.journal())
    home.close()
    for wrong in ([], ["--zk-secret", "keeper:wrong"], ["--zk-secret", "other:hush"]):
        for command in (["inspect"], ["verify"], ["backup", str(tmp_path / "saved")]):
            said = refused(command[0], "--zk", url, *wrong, *command[1:])
            assert "no right" in said and "hush" not in said and "wrong" not in said
    monkeypatch.setenv("STOKER_TEST_SECRET", "keeper:hush")
    right = ["--zk", url, "--zk-secret", "env:STOKER_TEST_SECRET"]
    assert FRAMEWORK_ID in succeed("inspect", *right, "--header")
    succeed("backup", *right, str(tmp_path / "saved"))
    succeed("restore", *right, "--overwrite", str(tmp_path / "saved"))
    assert "BAD" not in succeed("verify", *right)
    assert "no right" in refused("inspect", "--zk", url), "what was restored is the owner's too"


def test_another_applications_data_is_left_alone(zookeeper_path: str, saved: pathlib.Path) -> None:
    url, client = f"zk://{shared_server().address}{zookeeper_path}", shared_client()
    client.create(f"{zookeeper_path}/brokers", b"kafka's", makepath=True)
    assert "there is no journal" in refused("inspect", "--zk", url)
    for options in ([], ["--overwrite"]):
        assert "another application" in refused("restore", "--zk", url, *options, str(saved))
    assert client.get_children(zookeeper_path) == ["brokers"]
    client.create(f"{zookeeper_path}/schema", b"not ours")
    assert "is not a Stoker journal's" in refused("inspect", "--zk", url)
    assert "is not a Stoker journal's" in refused("restore", "--zk", url, "--overwrite", str(saved))


# --- wrong usage, wrong places


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--journal", "file:/x", "--zk", "zk://h/x"],
        ["--journal", "/x"],
        ["--journal", "zk://h/x"],
        ["--zk", "file:/x"],
        ["--zk", "zk://h"],
        ["--zk", "zk://h:99999/x"],
        ["--zk", "zk://user@h/x"],
        ["--journal", "file:/x", "--last", "0"],
        ["--journal", "file:/x", "--last", "1", "--from", "1"],
    ],
)
def test_wrong_usage_is_told_apart_from_failure(arguments: list[str]) -> None:
    assert "Error: " in refused("inspect", *arguments, status=2)


def test_a_secret_that_is_not_there_is_named_and_none_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.zk.zookeeper_onlooker.SESSION_TIMEOUT_MS", 1_000)
    said = refused(
        "inspect", "--zk", "zk://127.0.0.1:1/x", "--zk-secret", "env:STOKER_TEST_NOT_SET", status=2
    )
    assert "STOKER_TEST_NOT_SET" in said
    said = refused("inspect", "--zk", "zk://me:verysecret@127.0.0.1:1/x")
    assert "verysecret" not in said and "127.0.0.1:1" in said


def test_help_says_where_a_journal_may_be() -> None:
    assert "zk://" in succeed("inspect", "--help") and "FILE" in succeed("restore", "--help")
