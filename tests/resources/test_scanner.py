"""Every run samples its machine, in a thread that does not affect the training."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from transformers import TrainerCallback

import fmstune
from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.delivery.in_process import GuardedTracker
from fmstune.delivery.journal.reader import Event
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.process import Job
from fmstune.resources import scanner
from fmstune.resources.scanner import Scanner, scanned
from fmstune.resources.source import Source, Sources
from fmstune.run.directory import RunDirectory
from fmstune.run.tracking import sampled
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint
from tests.support.journals import events
from tests.support.readers import read_aim, read_wandb_offline, wandb_offline_dirs
from tests.support.tracked import tune
from tests.support.tuned import weights

NAME = "fmstune-resources"
OFTEN = "resources.interval=0.02"


def samples(directory: Path) -> list[Event]:
    return [event for event in events(directory) if event.kind == "metrics" and event.stage == "system"
            and "memory_percent" in event.values]  # fmt: skip


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_scanner_is_on_by_default() -> None:
    assert load(None).resources.interval == 10


def test_every_sample_of_a_run_is_in_each_tracker_and_the_weights_equal_those_without(here: Path) -> None:
    trackers = {"trackers.aim.repo": str(here), "trackers.wandb.mode": "offline"}
    sets = [f"{key}={value}" for key, value in trackers.items()]
    tune("with", OFTEN, *sets, trackers=("aim", "wandb", "file"))
    tune("without")
    assert weights("with") == weights("without")
    assert samples(Path("without")) == []
    assert running() == []
    sampled = samples(here / "with")
    steps = Counter(event.step for event in sampled)
    assert max(steps.values()) > 1, "several samples per step are what this test is about"
    assert sampled[0].step == 0
    assert sampled[-1].step == 12
    journaled = sorted((event.step or 0, event.values["memory_percent"]) for event in sampled)
    (aim,) = read_aim(here)
    assert sorted((int(step), value) for step, value in aim.points["memory_percent", "system"]) == journaled
    (offline,) = wandb_offline_dirs(here)
    rows = [row for row in read_wandb_offline(offline).history if "system/memory_percent" in row]
    assert sorted((row["train/global_step"], row["system/memory_percent"]) for row in rows) == journaled
    written = (here / "metrics-with.jsonl").read_text().splitlines()
    assert sum('"memory_percent"' in line for line in written) == len(sampled)


def test_a_run_shorter_than_the_interval_has_a_first_and_a_last_sample(here: Path) -> None:
    tune("out", "resources.interval=3600")
    assert [event.step for event in samples(here / "out")] == [0, 12]


def test_a_failing_run_records_its_last_sample_before_its_status(here: Path) -> None:
    class Fails(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("so it ends")

    settings = {"model.path": "demo", "data.train": "demo", "training.output_dir": "out"}
    with pytest.raises(RuntimeError, match="so it ends"):
        fmstune.train(settings=settings, callbacks=[Fails()], quiet=True)
    *_, last, status = events(here / "out")
    assert (last.stage, status.kind) == ("system", "status")
    assert samples(here / "out")[0].step == 0
    assert running() == []


def test_what_psutil_cannot_read_is_only_a_warning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", "/proc/net/dev")

    monkeypatch.setattr(psutil, "net_io_counters", refuse)  # a test cannot make /proc unreadable
    _, shown = tune("out", OFTEN)
    assert shown.count("the network cannot be read (PermissionError") == 1
    assert all("memory_percent" in each.values and "network_sent_mb" not in each.values
               for each in samples(here / "out"))  # fmt: skip


def test_a_forked_child_has_no_scanner_and_does_not_end_its_parents(tmp_path: Path) -> None:
    recorded: list[Any] = []
    made = Scanner(Sources([Source("a", lambda: {"a": 1.0})], print), recorded.append, 3600)
    made.start()
    child = os.fork()
    if child == 0:
        made.stop()
        os._exit(len(running()) or (0 if not made._ending.is_set() else 9))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    made.stop()
    assert recorded == [{"a": 1.0}] * 2


def test_a_hanging_source_does_not_block_the_end_and_records_nothing_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scanner, "_LAST_SECONDS", 0.05)
    hangs = threading.Event()
    recorded: list[Any] = []

    def read() -> dict[str, float]:
        hangs.wait()  # like an unreachable file system
        return {"a": 1.0}

    made = Scanner(Sources([Source("a", read)], print), recorded.append, 3600)
    made.start()
    made.stop()
    hangs.set()
    made._thread.join()
    assert recorded == []


def test_an_interval_of_zero_samples_nothing_and_starts_nothing(tmp_path: Path) -> None:
    with scanned(lambda figures: pytest.fail("sampled"), 0, tmp_path, pytest.fail):
        assert running() == []


def test_other_ranks_sample_nothing(
    recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with sampled(load(None), RunDirectory(run_directory), recorder, RunConsole(Console())):
        assert running() == []


def test_a_tracker_in_this_process_gets_samples_when_the_training_records_something(
    recorder: Recorder, run_directory: Path
) -> None:
    got: list[tuple[Any, ...]] = []

    class Guest(Tracker):
        def get_hf_callback(self, *, strict: bool = False) -> TrainerCallback:
            return TrainerCallback()

        def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
            got.append((metric, name, stage, step))

    guest = GuardedTracker(Job("guest", "tests:Guest", {}), lambda: Guest("guest"), pytest.fail, seconds=300)
    guest.attach(run_directory, recorder.journal)
    recorder.in_process.append(guest)
    beside = threading.Thread(target=recorder.track_sample, args=({"cpu_percent": 7.0}, "system", 3))
    beside.start()
    beside.join()
    assert got == []
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 4))  # this goes to its own callback
    recorder.track_sample({"cpu_percent": 8.0}, "system", 4)
    recorder.close("finished")
    assert got == [(7.0, "cpu_percent", "system", 3), (8.0, "cpu_percent", "system", 4)]
