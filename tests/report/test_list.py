"""`fmstune runs list`: which runs exist, how they ended, and how they compare."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fmstune.cli.app import app
from fmstune.delivery.journal.reader import JournalReader, lock_path
from fmstune.errors import ConfigError
from fmstune.report.listing import ListedRun, list_runs
from fmstune.report.summary import RunDetail, RunLine
from fmstune.system import locks
from fmstune.trackers.records import MetricPoint
from tests.support.commands import start
from tests.support.journals import journal_path
from tests.support.made_runs import end_run, make_run, start_run
from tests.support.waiting import wait_for

HOLDER = "tests.support.holding_journal"


def listed(*arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["runs", "list", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_a_line_with_its_identity_and_how_it_ended(here: Path) -> None:
    make_run(here / "runs" / "a", {1: 2.0, 2: 1.25}, params={"team": "nlp"}, eval_loss=1.5)
    done = CliRunner().invoke(app, ["runs", "list"])
    head, line = done.stdout.splitlines()
    assert head.split() == [
        "run",
        "status",
        "model",
        "method",
        "data",
        "step",
        "loss",
        "eval",
        "duration",
        "age",
        "params",
    ]
    assert line.split()[:8] == ["runs/a", "finished", "tiny-chat", "sft", "chats.jsonl", "2", "1.25", "1.5"]
    assert line.split()[-1] == "team=nlp"


def test_a_name_is_shown_where_it_is_not_that_of_the_directory(here: Path) -> None:
    make_run(here / "runs" / "a")
    make_run(here / "runs" / "b", settings={"run.name": "sweep-3"})
    head, *lines = CliRunner().invoke(app, ["runs", "list"]).stdout.splitlines()
    assert head.split()[:3] == ["run", "name", "status"]
    assert sorted(line.split()[:2] for line in lines) == [["runs/a", "finished"], ["runs/b", "sweep-3"]]


def test_a_killed_run_is_distinguished_from_a_running_one(here: Path) -> None:
    for name in ("killed", "running"):
        process = start(str(here / "runs" / name), cwd=here, module=HOLDER, light=True)
        wait_for((here / "runs" / name / "ready").exists)
        if name == "killed":
            process.kill()
            process.wait()
    try:
        assert {run["name"]: run["status"] for run in listed()} == {"killed": "killed", "running": "running"}
    finally:
        process.kill()
        process.wait()


def test_a_run_that_could_not_begin_its_journal_yet_is_running(here: Path) -> None:
    """While its disk is full, say."""
    path = journal_path(here / "runs" / "a")
    path.parent.mkdir(parents=True)
    path.touch()
    lock = locks.acquire(lock_path(path))
    assert lock is not None
    assert [run["status"] for run in listed()] == ["running"]
    lock.release()
    assert [run["status"] for run in listed()] == ["damaged"]


def test_the_end_of_a_run_is_the_one_without_a_later_resume(here: Path) -> None:
    directory = make_run(here / "runs" / "a", {1: 3.0, 2: 2.0}, status="failed", error="OSError: no room")
    assert (listed()[0]["status"], listed()[0]["error"]) == ("failed", "OSError: no room")
    again = start_run(directory)
    again.resumed(1)
    again.track_point(MetricPoint({"loss": 1.0}, "train", 2))
    end_run(again, status=None)
    (run,) = listed()
    assert (run["status"], run["error"], run["loss"], run["sessions"]) == ("killed", None, 1.0, 2)


def test_runs_are_found_below_directories_once_each_and_never_in_checkpoints(here: Path) -> None:
    for name in ("runs/a", "runs/sweep/b", "elsewhere/c", "runs/a/again"):
        make_run(here / name)
    make_run(here / "runs/a/checkpoint-5/not")
    make_run(here / ".hidden/not")
    (here / "runs/sweep/link").symlink_to(here / "elsewhere/c")
    (here / "runs/sweep/round").symlink_to(here)
    found = {run["run"] for run in listed()}
    assert found == {"runs/a", "runs/a/again", "runs/sweep/b", "runs/sweep/link"}
    assert {run["run"] for run in listed("elsewhere", "runs/sweep/b")} == {"elsewhere/c", "runs/sweep/b"}


@pytest.mark.parametrize("damage", [b"", b"\x00\xff garbage\n", b'{"kind":"header","version":99}\n'])
def test_an_unreadable_journal_is_listed_with_the_reason(here: Path, damage: bytes) -> None:
    journal_path(make_run(here / "runs" / "a")).write_bytes(damage)
    make_run(here / "runs" / "b")
    runs = {run["run"]: run for run in listed()}
    assert runs["runs/a"]["status"] == "damaged"
    assert runs["runs/a"]["problem"]
    assert runs["runs/b"]["status"] == "finished"


def test_terminal_control_characters_are_escaped(here: Path) -> None:
    name = "a\x1b[31m\nb"
    make_run(here / "runs" / name, params={"\x1b]0;title\x07": "x\ty"}, settings={"model.path": "m\x1b[2J"})
    done = CliRunner().invoke(app, ["runs", "list"])
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 2
    assert r"runs/a\x1b[31m\nb" in done.stdout
    assert listed()[0]["run"] == f"runs/{name}"


def test_a_missing_directory_suggests_the_nearest_run(here: Path) -> None:
    make_run(here / "runs" / "baseline")
    with pytest.raises(ConfigError, match=r"no directory runs/baselin\. Did you mean runs/baseline\?"):
        list_runs([Path("runs/baselin")])
    with pytest.raises(ConfigError, match="The newest run is runs/baseline"):
        list_runs([Path("nope")])


# -- filtering and sorting --------------------------------------------------------------------


# -- the index --------------------------------------------------------------------------------


def state(runs: list[ListedRun]) -> list[ListedRun]:
    return sorted(runs, key=lambda run: run.path)


def without_index(folder: Path) -> list[ListedRun]:
    before = os.environ.get("FMSTUNE_CACHE")
    os.environ["FMSTUNE_CACHE"] = "/proc/no-index"
    try:
        return state(list_runs([folder], detailed=True)[0])
    finally:
        os.environ.pop("FMSTUNE_CACHE") if before is None else os.environ.update(FMSTUNE_CACHE=before)


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat files as unchanged at once, so that no test has to wait for it."""
    monkeypatch.setattr("fmstune.report.index._AT_REST", -(10**18))


def test_the_second_list_reads_no_journal(here: Path, at_rest: None, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(here / "runs" / "a", {1: math.nan, 2: math.inf}, params={"big": 10**30, "none": None})
    first = list_runs([here], detailed=True)
    monkeypatch.setattr("fmstune.report.listing.read_summary", None)
    assert repr(list_runs([here], detailed=True)) == repr(first)
    assert len(list_runs([here])[0]) == 1


def test_a_journal_that_has_just_changed_is_not_cached(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(here / "runs" / "a")
    list_runs([here])
    read: list[Path] = []
    monkeypatch.setattr(
        "fmstune.report.listing.read_summary", lambda path: read.append(path) or (RunLine(), RunDetail())
    )
    list_runs([here])
    assert read == [here / "runs" / "a"]


def change_nothing(directory: Path) -> None:
    """Leave the run unchanged."""


def append(directory: Path) -> None:
    again = start_run(directory)
    again.resumed(1)
    again.track(0.5, "loss", "train", step=9)
    end_run(again, "interrupted")


def rewrite_in_place(directory: Path) -> None:
    """Change a digit, and restore the file's modification time."""
    path, before = journal_path(directory), journal_path(directory).stat()
    text = path.read_bytes()
    with path.open("r+b") as file:
        file.write(text.replace(b'"loss":2.0', b'"loss":7.0').replace(b'"loss":1.5', b'"loss":6.5'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(directory: Path) -> None:
    shutil.rmtree(directory)
    make_run(directory, {3: 4.0})


def remove(directory: Path) -> None:
    shutil.rmtree(directory)


def move(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))


def damage(directory: Path) -> None:
    with journal_path(directory).open("r+b") as file:
        file.write(b"damaged")


CHANGES: list[Callable[[Path], None]] = [
    change_nothing, append, rewrite_in_place, replace, remove, move, damage,
]  # fmt: skip


@given(
    changes=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3),
    harm=st.sampled_from(["none", "cut", "flip", "zero", "other", "delete", "directory"]),
    at=st.integers(0, 2**32),
)
def test_the_index_is_never_stale_whatever_happens_to_runs_and_to_itself(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Callable[[Path], None]], harm: str, at: int
) -> None:
    folder = tmp_path_factory.mktemp("indexed")
    os.environ["FMSTUNE_CACHE"] = str(folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmstune.report.index._AT_REST", -(10**18))
        for name in ("a", "b"):
            make_run(folder / "runs" / name, params={"name": name})
        list_runs([folder])
        for change in changes:
            if (folder / "runs" / "a").exists():
                change(folder / "runs" / "a")
            spoil(folder / "cache" / "runs.sqlite", harm, at)
            expected = without_index(folder)
            assert state(list_runs([folder], detailed=True)[0]) == expected
            assert [run.line for run in state(list_runs([folder])[0])] == [run.line for run in expected]


def spoil(path: Path, harm: str, at: int) -> None:
    """Damage the file of the index."""
    if not path.is_file():
        return
    held = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(held[: at % len(held)])
    elif harm == "flip":
        for place in range(at % 509, len(held), 509):
            held[place] ^= 1 << at % 8
        path.write_bytes(held)
    elif harm == "zero":
        path.write_bytes(bytes(len(held)))
    elif harm == "other":
        path.write_bytes(b"SQLite format 3\x00 and then something else")
    elif harm == "delete":
        path.unlink()
    elif harm == "directory":
        path.unlink()
        path.mkdir()


def test_the_content_of_a_removed_run_leaves_the_index(here: Path, at_rest: None) -> None:
    directory = make_run(here / "runs" / "a", params={"note": "private-words"})
    list_runs([here])
    cache = Path(os.environ["HOME"], ".cache/fmstune/runs.sqlite")
    assert b"private-words" in cache.read_bytes()
    shutil.rmtree(directory)
    list_runs([here])
    assert b"private-words" not in cache.read_bytes()


def test_listing_changes_nothing_in_a_run(here: Path) -> None:
    directory = make_run(here / "runs" / "a")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    listed("runs")
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    assert JournalReader(journal_path(directory)).header.run == "a"


@pytest.mark.parametrize(
    ("condition", "count"), [("age>2w", 0), ("age<2w", 1), ("duration<1h30m", 1), ("age>1", 0)]
)
def test_durations_have_units_up_to_weeks(here: Path, condition: str, count: int) -> None:
    make_run(here / "runs" / "a")
    assert len(listed("--where", condition)) == count


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("loss<1 and eval<2", "the field is a number"),
        ("loss>1,eval>1", "a separate --where"),
        ("loss<abc", "'abc' is not"),
        ("loss=<7", "'<7' is not"),
        ("loss=lots", "the field is a number"),
        ("loss>", "no value after >"),
    ],
)
def test_a_condition_that_no_value_can_be_compared_with_is_an_error(
    here: Path, condition: str, says: str
) -> None:
    make_run(here / "runs" / "a")
    assert says in str(CliRunner().invoke(app, ["runs", "list", "--where", condition]).exception)


def test_an_unreadable_journal_is_named(here: Path) -> None:
    make_run(here / "runs" / "a")
    journal = journal_path(here / "runs" / "a")
    journal.unlink()
    journal.mkdir()
    for command in (["show"], ["export"], ["report"]):
        error = CliRunner().invoke(app, ["runs", *command, "runs/a"]).exception
        assert "journal.jsonl cannot be read: Is a directory." in str(error)


def test_an_invalid_time_is_an_error_and_not_a_condition_that_nothing_meets(here: Path) -> None:
    make_run(here / "runs" / "a")
    done = CliRunner().invoke(app, ["runs", "list", "--where", "age>2fortnights"])
    assert "age takes a time such as 90s" in str(done.exception)
