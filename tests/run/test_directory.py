"""Which directory a run gets, on each of its ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmstune.config.load.load import load
from fmstune.config.schema.tables import RunConfig
from fmstune.delivery.journal.reader import LaterJournal, lock_path
from fmstune.delivery.shipping.main import EXIT_DONE
from fmstune.delivery.shipping.process import ShipperProcess
from fmstune.errors import ConfigError
from fmstune.run import locking
from fmstune.run.directory import claim, run_state
from fmstune.run.locking import locked
from fmstune.run.unfinished import to_resume
from fmstune.system import locks
from tests.support.checkpoints import write_checkpoint
from tests.support.journals import journal_path, make_later_version, open_journal
from tests.support.made_runs import end_run, start_run
from tests.support.moments import acting
from tests.support.shipping import job, record_steps, steps_in
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configured(output: str | None = None) -> RunConfig:
    return load(None, [("training.output_dir", output, "--output-dir")] if output else [])


def test_other_ranks_use_the_directory_that_rank_zero_created() -> None:
    Path("out/tracking").mkdir(parents=True)
    open_journal(Path("out")).close()
    with pytest.raises(ConfigError, match="holds a run that is interrupted"):
        claim(configured("out"), None, overwrite=False)
    assert claim(configured("out"), None, overwrite=False, main=False).path == Path("out")
    assert claim(configured("out"), "auto", overwrite=False, main=False).checkpoint is None


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_running_run_is_left_alone(overwrite: bool, resume: str | None) -> None:
    Path("out/tracking").mkdir(parents=True)
    going = open_journal(Path("out"))
    with pytest.raises(ConfigError, match=rf"out: another process \(pid {os.getpid()}\) is running this run"):
        claim(configured("out"), resume, overwrite=overwrite)
    assert claim(configured("out"), resume, overwrite=overwrite, main=False).path == Path("out")
    going.close()
    assert claim(configured("out"), "auto", overwrite=False).path == Path("out")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("link", "link is a link to nowhere, which does not exist"),
        ("link/out", "link is a link to nowhere, which does not exist"),
        ("circle/out", "circle is a link to circle, which does not exist"),
        ("file", "is a file"),
        ("file/a/b", "file is a file"),
        ("/proc/foo", "/proc is not writable"),
        ("/sys/a/b", "/sys is not writable"),
    ],
)
def test_a_directory_that_cannot_be_created_is_refused_at_once(
    output: str, said: str, overwrite: bool
) -> None:
    Path("link").symlink_to("nowhere")
    Path("circle").symlink_to("circle")
    Path("file").touch()
    with pytest.raises(ConfigError, match=said):
        claim(configured(output), None, overwrite=overwrite)


def test_a_directory_that_can_be_created_is_not_created_yet() -> None:
    Path("real").mkdir()
    Path("link").symlink_to("real")
    for output in ("a/b/c", "link/out", "real", "link"):
        assert claim(configured(output), None, overwrite=False).path == Path(output)
    assert sorted(path.name for path in Path().iterdir()) == ["link", "real"]


def test_ranks_of_one_launcher_choose_the_same_new_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code = (
        "import time; from fmstune.config.load.load import load; from fmstune.run.directory import claim\n"
        "print(claim(load(None), None, overwrite=False).path)"
    )
    names = {subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)}
    assert len(names) == 1
    assert names.pop().startswith("runs/demo-")


def test_several_machines_need_an_output_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--output-dir"):
        claim(configured(), None, overwrite=False)
    assert claim(configured("out"), None, overwrite=False).path == Path("out")


def test_runs_that_start_in_the_same_second_get_different_directories() -> None:
    first, second = (claim(configured(), None, overwrite=False) for _ in range(2))
    with locked(dataclasses.replace(first, path=Path("runs/a")), overwrite=False) as (one, _):
        journal_path(one.path).touch()
        with locked(dataclasses.replace(second, path=Path("runs/a")), overwrite=False) as (other, _):
            assert [one.path, other.path] == [Path("runs/a"), Path("runs/a-2")]
    assert one.path.exists()
    assert not other.path.exists()  # nothing was written to it


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_run_in_a_directory_neither_writes_nor_deletes_anything(overwrite: bool) -> None:
    both = [claim(configured("out"), None, overwrite=overwrite) for _ in range(2)]
    with locked(both[0], overwrite=overwrite) as (_, lock):
        assert lock is not None
        Path("out/config.toml").write_text("the first one's")
        with (
            pytest.raises(
                ConfigError, match=rf"out: another process \(pid {os.getpid()}\) is running this run"
            ),
            locked(both[1], overwrite=overwrite),
        ):
            pass
        assert Path("out/config.toml").read_text() == "the first one's"
        open_journal(Path("out"), lock).close()
    if not overwrite:
        with (
            pytest.raises(ConfigError, match="another run was started there meanwhile"),
            locked(both[1], overwrite=False),
        ):
            pass


def test_a_run_that_another_process_has_continued_meanwhile_is_not_continued_from_its_old_checkpoint() -> (
    None
):
    write_checkpoint(Path("out/checkpoint-4"))
    Path("out/tracking").mkdir()
    open_journal(Path("out")).close()
    for resume in ("auto", "out", "out/checkpoint-4"):
        both = [claim(configured("out"), resume, overwrite=False) for _ in range(2)]
        with locked(both[0], overwrite=False) as (_, lock):
            journal = open_journal(Path("out"), lock)
            journal.append("resume", {"step": 4})
            journal.close()
        with (
            pytest.raises(ConfigError, match="another process has continued this run meanwhile"),
            locked(both[1], overwrite=False),
        ):
            pass


def test_a_run_that_does_not_start_leaves_its_directory_to_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locks, "_SECONDS_TO_SHARE", 0.02)
    for moment in itertools.count(1):
        path, taken = lock_path(journal_path(Path(f"out-{moment}"))), list[locks.Lock | None]()

        def take() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)  # noqa: B023
            taken.append(locks.acquire(path))  # noqa: B023

        with (
            contextlib.suppress(KeyboardInterrupt, ConfigError),
            acting(moment, take, locking) as acted,
            locked(claim(configured(f"out-{moment}"), None, overwrite=False), overwrite=False),
        ):
            raise KeyboardInterrupt
        for lock in filter(None, taken):
            assert locks.holder(path) is not None, acted
            lock.release()
        if not acted:
            break
    assert moment > 20


@pytest.mark.parametrize("linked", [False, True])
def test_overwriting_removes_everything_but_the_lock(linked: bool) -> None:
    Path("out").mkdir()
    Path("disk" if linked else "out/tracking").mkdir()
    if linked:
        Path("out/tracking").symlink_to("../disk")
    open_journal(Path("out")).close()
    Path("out/tracking/wandb.json").touch()
    Path("out/mine.txt").touch()
    directory = claim(configured("out"), None, overwrite=True)
    with locked(directory, overwrite=True):
        assert {*Path("out").iterdir()} == {Path("out/mine.txt"), Path("out/tracking")}
        assert [*Path("out/tracking").iterdir()] == [Path("out/tracking/journal.jsonl.lock")]
        with pytest.raises(ConfigError, match="is running this run"):
            claim(configured("out"), None, overwrite=True)


def test_a_run_that_does_not_start_leaves_no_directory_behind() -> None:
    def end_early() -> None:
        with locked(claim(configured(), None, overwrite=False), overwrite=False) as (directory, _):
            (directory.path / "config.toml").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end_early()
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("configuration", [True, False])
def test_a_run_that_was_killed_before_its_journal_was_begun_can_be_started_again(
    resume: str | None, configuration: bool
) -> None:
    directory = claim(configured("out"), None, overwrite=False)
    with locked(directory, overwrite=False) as (_, lock):
        if configuration:
            Path("out/config.toml").touch()
        assert lock is not None
        lock.release()
        assert claim(configured("out"), resume, overwrite=False) == directory
        write_checkpoint(Path("out/checkpoint-4"))
        with pytest.raises(ConfigError, match="holds checkpoints of a run without its journal"):
            claim(configured("out"), resume, overwrite=False)


@pytest.mark.parametrize("resume", [None, "auto", "runs/out", "runs/out/checkpoint-4"])
def test_a_run_of_a_later_version_is_refused_at_once_and_can_be_replaced(resume: str | None) -> None:
    out = Path("runs/out")
    (out / "tracking").mkdir(parents=True)
    (out / "config.toml").touch()
    open_journal(out).close()
    write_checkpoint(out / "checkpoint-4")
    assert to_resume(None) == out
    assert claim(configured(str(out)), "auto", overwrite=False).step == 4
    journal = journal_path(out)
    make_later_version(journal)
    with pytest.raises(LaterJournal, match="was written by a later fmstune"):
        claim(configured(str(out)), resume, overwrite=False)
    with pytest.raises(ConfigError, match="finds no unfinished run"):
        to_resume(None)
    assert claim(configured(str(out)), None, overwrite=True).path == out


def test_a_finished_run_stays_finished_until_it_is_resumed() -> None:
    Path("out/tracking").mkdir(parents=True)
    journal = open_journal(Path("out"))
    journal.append("status", {"status": "finished"})
    journal.close()
    journal = open_journal(Path("out"))
    for count in range(3):  # as a thread that outlived the run did, before the journal refused it
        journal.append("metrics", {"values": {"late": count}})
    assert run_state(Path("out")) == "finished"
    journal.append("resume", {"step": 5})
    journal.append("metrics", {"values": {"loss": 1.0}})
    assert run_state(Path("out")) == "interrupted"
    journal.append("status", {"status": "failed"})
    journal.close()
    assert run_state(Path("out")) == "failed"


def test_a_run_that_is_being_delivered_is_not_overwritten_and_loses_nothing(tmp_path: Path) -> None:
    """The shipper would deliver the next run's events to the tracker's run of the last one."""
    recorder = start_run(Path("out"))
    record_steps(recorder, 1, 20)
    end_run(recorder)
    shipper = ShipperProcess(job(tmp_path / "c", fault="slow"), check_within=None)
    shipper.ship(Path("out"), follow=False, close_timeout=0)
    wait_for(lambda: steps_in(tmp_path / "c"))
    with (
        pytest.raises(ConfigError, match=r"out: another process .* is delivering it to collector; wait"),
        locked(claim(configured("out"), None, overwrite=True), overwrite=True),
    ):
        pass
    assert shipper.wait(300) == EXIT_DONE
    shipper.kill()
    assert steps_in(tmp_path / "c") == [*range(1, 21)]
    with locked(claim(configured("out"), None, overwrite=True), overwrite=True):
        assert not journal_path(Path("out")).exists()
