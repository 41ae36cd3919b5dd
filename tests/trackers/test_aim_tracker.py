"""The tracker `aim` with a real Aim repository, and with a real `aim server`."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fmstune
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.report import report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.handover import HandOver
from fmstune.delivery.shipping.process import Job
from fmstune.trackers.aimstack_tracker import AimStackTracker
from fmstune.trackers.records import MetricPoint, RunStart, TrackerError
from tests.support.aim_servers import aim_server, empty_repository, free_port, provide_database
from tests.support.journals import events
from tests.support.nurseries import run_code
from tests.support.readers import read_aim
from tests.support.shipping import record_steps
from tests.support.waiting import wait_for

AIM = "fmstune.trackers.aimstack_tracker:AimStackTracker"


@pytest.fixture(autouse=True, scope="module")
def _database() -> None:
    """New repositories get a database at once; other processes of these tests let Aim create theirs."""
    importlib.import_module("tests.support.aim_database")
    provide_database()


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_found_through_aims_own_sdk_with_names_contexts_and_nested_params(in_tmp: Path) -> None:
    tracker = AimStackTracker(
        tracker_config={"experiment": "tuning", "run_name": "first", "tags": ("a", "b")}
    )
    opened = tracker.open(RunStart("run-1", "."))
    tracker.set_params({"team": "nlp", "deep": {"er": [1, None, "x"]}}, "params")
    tracker.track_point(MetricPoint({"loss": 2.0, "lr": 0.1}, "train", 1, 0.5))
    tracker.track_point(MetricPoint({"loss": 1.5}, "eval", 1, 0.5))
    tracker.track(0.9, "exact_match", "eval", step=2)
    tracker.track(7, "bare")
    tracker.close("finished")
    (run,) = read_aim(in_tmp)
    assert (run.hash, run.name, run.experiment, sorted(run.tags)) == (
        opened.id,
        "first",
        "tuning",
        ["a", "b"],
    )
    assert run.params == {"params": {"team": "nlp", "deep": {"er": [1, None, "x"]}}, "status": "finished"}
    assert run.points == {
        ("loss", "train"): [[1, 2.0]],
        ("lr", "train"): [[1, 0.1]],
        ("loss", "eval"): [[1, 1.5]],
        ("exact_match", "eval"): [[2, 0.9]],
        ("bare", None): [[0, 7.0]],
    }


def test_a_resumed_run_is_the_same_run_and_a_repeated_step_replaces_the_old_value(in_tmp: Path) -> None:
    first = AimStackTracker()
    opened = first.open(RunStart("run-1", "."))
    first.track(1.0, "loss", "train", step=1)
    first.track(2.0, "loss", "train", step=2)
    first.close("interrupted")
    second = AimStackTracker()
    assert second.open(RunStart("run-1", ".", tracker_run_id=opened.id)).id == opened.id
    second.track(5.0, "loss", "train", step=2)
    second.track(6.0, "loss", "train", step=3)
    second.close("failed", "ValueError: x")
    (run,) = read_aim(in_tmp)
    assert run.points == {("loss", "train"): [[1, 1.0], [2, 5.0], [3, 6.0]]}
    assert run.params == {"status": "failed", "error": "ValueError: x"}


def test_a_run_resumed_elsewhere_continues_the_aim_run_and_a_second_one_gets_its_own(in_tmp: Path) -> None:
    first, notes = None, []
    for own, after, value in (
        ("parent", 0, 1.0),
        ("child", 4, 2.0),
        ("child", 4, 3.0),
        ("other child", 4, 9.0),
    ):
        tracker = AimStackTracker()
        opened = tracker.open(RunStart(own, ".", first, run_id=own, after=after))
        first = first or opened.id
        tracker.track(value, "loss", "train", step=int(value))
        tracker.close("finished")
        notes.append(opened.note)
    runs = {run.name: run for run in read_aim(in_tmp)}
    assert [value for _, value in runs["child"].points["loss", "train"]] == [1.0, 2.0, 3.0]
    assert runs["other child"].points["loss", "train"] == [[9, 9.0]]
    assert notes == [None, None, None, f"a run of its own there, as another run continues {first}"]


def test_neither_environment_variables_nor_the_command_line_reach_the_repository(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres-planted-secret")
    tracker = AimStackTracker()
    tracker.open(RunStart("run-1", "."))
    tracker.track(1.0, "loss", "train", step=1)
    tracker.close("finished")
    for path in (in_tmp / ".aim").rglob("*"):
        if path.is_file():
            assert b"postgres-planted-secret" not in path.read_bytes()


def test_the_default_repository_is_the_nearest_one_upwards_as_in_aim(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AimStackTracker().open(RunStart("up", "."))
    below = in_tmp / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    tracker = AimStackTracker()
    assert tracker.open(RunStart("down", ".")).url == str(in_tmp)
    tracker.close("finished")
    assert not (below / ".aim").exists()


def test_a_check_of_a_folder_writes_nothing(in_tmp: Path) -> None:
    found = AimStackTracker().check(5)
    assert found.ok
    assert list(in_tmp.iterdir()) == []


def test_a_check_reports_what_is_wrong_with_the_repository(in_tmp: Path) -> None:
    (in_tmp / "file").write_text("")
    found = AimStackTracker(tracker_config={"repo": str(in_tmp / "file" / "below")}).check(5)
    assert found.state == "bad_option"
    assert "repo" in found.remedy
    for repo in ("aim://nohost", "http://127.0.0.1:1", "aim://127.0.0.1:port"):
        assert AimStackTracker(tracker_config={"repo": repo}).check(1).state == "bad_option"


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda aim: [shutil.rmtree(aim), aim.touch()], ".aim is not a folder"),
    "garbage": (lambda aim: (aim / "run_metadata.sqlite").write_bytes(b"garbage" * 999), "is not a database"),
    "no database": (lambda aim: (aim / "run_metadata.sqlite").unlink(), "run_metadata.sqlite is missing"),
    "garbage, unfinished": (
        lambda aim: [(aim / "run_metadata.sqlite").write_bytes(b"\0" * 4096), (aim / "VERSION").unlink()],
        "is not a database",
    ),
    "no table": (lambda aim: (aim / "run_metadata.sqlite").write_bytes(b""), "no such table"),
    "odd version": (lambda aim: (aim / "VERSION").write_text("soon"), "VERSION says 'soon'"),
    "lost index": (lambda aim: next(aim.glob("meta/index/MANIFEST-*")).unlink(), "has lost its 'MANIFEST-"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_check_reports_what_is_damaged_in_a_repository_and_changes_nothing(
    damage: str, in_tmp: Path
) -> None:
    shutil.copytree(empty_repository(), in_tmp / "repo")
    harm, said = DAMAGES[damage]
    harm(in_tmp / "repo" / ".aim")
    before = contents(in_tmp)
    found = AimStackTracker(tracker_config={"repo": "repo"}).check(5)
    assert (found.state, said in found.detail) == ("broken", True), found
    assert "move its .aim away" in found.remedy
    assert contents(in_tmp) == before


def test_an_incomplete_repository_is_reported_and_completed_by_a_run(in_tmp: Path) -> None:
    (in_tmp / ".aim").mkdir()
    found = AimStackTracker().check(5)
    assert (found.state, "unfinished" in found.detail) == ("ok", True)
    assert list((in_tmp / ".aim").iterdir()) == []
    tracker = AimStackTracker()
    tracker.open(RunStart("run-1", "."))
    tracker.close("finished")
    assert [run.name for run in read_aim(in_tmp)] == ["run-1"]


def test_a_process_that_is_killed_while_it_creates_the_repository_leaves_none(in_tmp: Path) -> None:
    """Aim could not complete its database."""
    script = """
import os, signal
from aim.storage.structured.db import DB
from fmstune.trackers.aimstack_tracker import AimStackTracker
from fmstune.trackers.base import RunStart
DB.run_upgrades = lambda self: os.kill(os.getpid(), signal.SIGKILL)
AimStackTracker().open(RunStart("run-1", "."))
"""
    assert run_code(script, tracker="aim").returncode == -signal.SIGKILL
    assert not (in_tmp / ".aim").exists()
    tracker = AimStackTracker()
    tracker.open(RunStart("run-2", "."))
    tracker.close("finished")
    assert [run.name for run in read_aim(in_tmp)] == ["run-2"]
    assert [path.name for path in in_tmp.iterdir()] == [".aim"]


def test_a_repository_of_an_older_aim_is_reported_as_such(in_tmp: Path) -> None:
    (in_tmp / ".aim" / "objects").mkdir(parents=True)
    found = AimStackTracker().check(5)
    assert (found.state, "older Aim" in found.detail) == ("no_permission", True)


def test_processes_that_start_together_in_a_new_folder_create_one_repository(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import os, aim
from fmstune.trackers.aimstack_tracker import AimStackTracker
from fmstune.trackers.base import RunStart
children = []
for number in range(3):
    if not (child := os.fork()):
        assert (found := AimStackTracker().check(5)).ok, found
        tracker = AimStackTracker()
        tracker.open(RunStart(f"run-{number}", "."))
        tracker.close("finished")
        print(end="", flush=True)
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
os._exit(0)
"""
    monkeypatch.delenv("PYTEST_AIM_DATABASE", raising=False)  # Aim creates its database
    done = run_code(script, tracker="aim")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert sorted(run.name for run in read_aim(in_tmp)) == ["run-0", "run-1", "run-2"]
    assert [path.name for path in in_tmp.iterdir()] == [".aim"]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def test_a_server_that_is_down_or_silent_is_unreachable(in_tmp: Path) -> None:
    port = free_port()
    found = AimStackTracker(tracker_config={"repo": f"aim://127.0.0.1:{port}"}).check(2)
    assert (found.state, "refused" in found.detail) == ("unreachable", True)
    assert f"--port {port}" in found.remedy
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"aim://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        found = AimStackTracker(tracker_config={"repo": address}).check(0.5)
    assert found.state == "unreachable"
    assert "did not answer" in found.detail
    assert time.monotonic() - began < 60  # rather than forever


def test_an_aim_server_that_dies_and_comes_back_gets_every_point_and_blocks_nothing(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    port, repository = free_port(), tmp_path / "remote"
    with aim_server(repository, port):
        fleet = Fleet(
            [Job("aim", AIM, {"repo": f"aim://127.0.0.1:{port}"})], check_within=300, close_timeout=300
        )
        found = fleet.check()["aim"]
        assert found.ok, found
        assert found.latency is not None
        fleet.start_delivery(run_directory)
        record_steps(recorder, 1, 10)
        wait_for(lambda: report(run_directory, ["aim"])[0].delivered == 10)
    slowest = 0.0
    for step in range(11, 25):
        began = time.perf_counter()
        record_steps(recorder, step, step)
        slowest = max(slowest, time.perf_counter() - began)
    assert report(run_directory, ["aim"])[0].delivered < 24
    with aim_server(repository, port):
        record_steps(recorder, 25, 40)
        for params in ({"rows": {"train": 8}}, {"rows": {"eval": 2}}):
            recorder.set_params(params, "data")
        for value in (1.0, 2.0, 3.0):
            recorder.track(value, "reward", "train", step=40)
        recorder.close("finished")
        fleet.finish()
        (line,) = report(run_directory, ["aim"])
        assert line.state == "complete", line
    assert slowest < 10, "a call blocked while the server was down"
    (run,) = read_aim(repository, reindex=True)
    assert [step for step, _ in run.points[("loss", "train")]] == list(range(1, 41))
    assert run.params["status"] == "finished"


def test_standalone_values_that_would_break_the_run_are_adapted(tmp_path: Path) -> None:
    tracker = AimStackTracker(tracker_config={"repo": str(tmp_path)})
    tracker.track(2.0, "", "eval", step=1)
    tracker.track(2**70, "large", step=1)
    tracker.set_params({"": 1, "half\ud800": 2**70}, "")
    tracker.close("finished")
    (run,) = read_aim(tmp_path)
    points = {key: [tuple(each) for each in found] for key, found in run.points.items()}
    assert points == {("_", "eval"): [(1, 2.0)], ("large", None): [(1, 2.0**70)]}
    assert run.params["params"] == {"_": 1, "half\\ud800": str(2**70)}


def test_standalone_a_forked_child_is_refused_with_a_clear_error(tmp_path: Path) -> None:
    tracker = AimStackTracker(tracker_config={"repo": str(tmp_path)})
    tracker.track(1.0, "loss", step=1)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            tracker.track(2.0, "loss", step=2)
        except TrackerError as error:
            os.write(writes, str(error).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        assert f"opened by process {os.getpid()}" in pipe.read()
    os.waitpid(child, 0)
    tracker.close("finished")


def test_a_run_that_was_just_closed_is_reopened_not_created_again(tmp_path: Path) -> None:
    tracker = AimStackTracker("aim", {"repo": str(tmp_path)})
    first = tracker.open(RunStart("run", ".", run_id="id-1", new_run_id="a" * 24))
    tracker.close("finished")
    again = tracker.open(RunStart("run", ".", run_id="id-1", tracker_run_id=first.id))
    tracker.close("finished")
    assert first.id == again.id == "a" * 24
    assert [path.name for path in (tmp_path / ".aim" / "meta" / "chunks").iterdir()] == [first.id]


def test_a_server_that_accepts_no_files_blocks_nothing_and_is_reported(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    tracker = AimStackTracker("aim", {"repo": "aim://127.0.0.1:1"})
    (tmp_path / "a.txt").write_text("a")
    with active(recorder):
        fmstune.track_artifact(tmp_path / "a.txt")
    recorder.close("finished")
    handover = HandOver(recorder.journal.path, tracker, 0)
    (event, _) = events(run_directory)
    assert handover.deliver(event) is False
    assert handover.changes == ("the artifact a.txt stays in the journal only: this tracker stores no files",)
    assert AimStackTracker("aim", {"repo": "."}).takes_artifacts
