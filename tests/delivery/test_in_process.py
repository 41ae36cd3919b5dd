"""A vendor's callback runs in the training process and cannot affect the training."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.delivery.in_process import GuardedTracker
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.sync import sync
from fmstune.run.tracking import reports
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint, RunStart, Status, Table, TrackerRun
from fmstune.trackers.registry import reference

EVENTS = sorted(name for name in dir(TrainerCallback) if name.startswith("on_"))


class Panic(BaseException):
    """Like that of a Rust extension."""


class Vendor(Tracker):
    """A tracker with a callback that does the same at each event."""

    def __init__(self, act: Any) -> None:
        super().__init__("vendor")
        self._act = act

    def get_hf_callback(self, *, strict: bool = False) -> TrainerCallback:
        act = self._act

        def event(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            act(args, state, control, kwargs)

        made: TrainerCallback = type("Callback", (TrainerCallback,), dict.fromkeys(EVENTS, event))()
        return made


def guarded(
    vendor: Tracker, warn: Callable[[str], None] = lambda text: None, seconds: float = 300
) -> GuardedTracker:
    job = Job("vendor", "tests.delivery.test_in_process:Vendor", {"api_key": "abcdefgh123"})
    return GuardedTracker(job, lambda: vendor, warn, seconds=seconds)


def attached(tracker: GuardedTracker, recorder: Recorder) -> TrainerCallback:
    callback = tracker.attach(recorder.journal.path.parents[1], recorder.journal)
    recorder.in_process.append(tracker)
    return callback


def happens(callback: TrainerCallback, event: str = "on_log", **given: Any) -> None:
    args = TrainingArguments("out", report_to=[])
    getattr(callback, event)(args, TrainerState(), TrainerControl(), **given)


def spoil(args: Any, state: Any, control: Any, kwargs: dict[str, Any]) -> None:
    args.max_steps = state.max_steps = 1
    args.lr_scheduler_kwargs.clear()
    state.log_history[-1].clear()
    state.log_history.clear()
    state.stateful_callbacks["mine"]["args"].clear()
    control.should_training_stop = True
    for given in kwargs.values():
        given.clear()


@pytest.mark.parametrize("event", EVENTS)
def test_a_vendors_callback_changes_only_its_own_copies(
    event: str, tmp_path: Path, recorder: Recorder
) -> None:
    warnings: list[str] = []
    args = TrainingArguments(str(tmp_path), max_steps=9, lr_scheduler_kwargs={"a": 1}, report_to=[])
    state = TrainerState(
        max_steps=9, log_history=[{"loss": 1.0}], stateful_callbacks={"mine": {"args": {"a": 1}}}
    )
    control = TrainerControl()
    given = {"logs": {"loss": 1.0}, "metrics": {"eval_loss": {"a": 1.0}}}
    callback = attached(guarded(Vendor(spoil), warnings.append), recorder)
    getattr(callback, event)(args, state, control, **given)
    assert warnings == []
    assert (args.max_steps, args.lr_scheduler_kwargs) == (9, {"a": 1})
    assert (state.max_steps, state.log_history) == (9, [{"loss": 1.0}])
    assert state.stateful_callbacks == {"mine": {"args": {"a": 1}}}
    assert control.should_training_stop is False
    assert given == {"logs": {"loss": 1.0}, "metrics": {"eval_loss": {"a": 1.0}}}


def draw(*_: Any) -> None:
    torch.rand(1), random.random(), np.random.rand()


def seed(*_: Any) -> None:
    torch.manual_seed(0), random.seed(0), np.random.seed(0)


def fail_after_all(*_: Any) -> None:
    draw()
    os.chdir("/")
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise RuntimeError("client went away")


def state_of_process() -> list[Any]:
    numbers = [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]
    modes = [torch.is_grad_enabled(), torch.get_default_dtype(), signal.getsignal(signal.SIGTERM)]
    return [*numbers, *modes, str(Path.cwd())]


@pytest.mark.parametrize("act", [draw, seed, fail_after_all])
@pytest.mark.parametrize("hook", ["callback", "track", "close"])
def test_a_vendor_changes_no_process_state_that_the_training_depends_on(
    hook: str, act: Any, recorder: Recorder
) -> None:
    """A random number that it draws would change the model's weights, and a chdir the output folder."""
    vendor = Vendor(act)
    vendor.track = vendor.close = act  # type: ignore[method-assign]
    tracker = guarded(vendor)
    callback = attached(tracker, recorder)
    args = TrainingArguments("out", report_to=[])
    before = state_of_process()
    if hook == "callback":
        callback.on_step_end(args, TrainerState(), TrainerControl())
    elif hook == "track":
        recorder.track(1.0, "loss", None, step=1)
    else:
        recorder.close("finished")
    assert state_of_process() == before


@pytest.mark.parametrize(
    "error", [RuntimeError, SystemExit, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, Panic]
)
def test_whatever_a_vendors_callback_raises_disables_it_with_a_warning(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    def fail(*_: Any) -> None:
        raise error("client went away")

    monkeypatch.setattr(signal, "getsignal", lambda _: print)  # as in a run, which installs its own handler
    warnings: list[str] = []
    callback = attached(guarded(Vendor(fail), warnings.append), recorder)
    for _ in range(2):
        happens(callback, logs={})
    said = f"the tracker vendor is disabled for this run: {error.__name__}: client went away"
    assert warnings == [said]


def test_ctrl_c_during_a_vendors_call_is_not_blamed_on_the_vendor(recorder: Recorder) -> None:
    def stop(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(3600)

    tracker = guarded(Vendor(stop), seconds=60)
    callback = attached(tracker, recorder)
    with pytest.raises(KeyboardInterrupt):
        happens(callback)
    assert tracker.problem is None


def test_a_call_that_does_not_return_is_abandoned_with_a_warning_and_has_no_further_effect(
    recorder: Recorder, run_directory: Path
) -> None:
    woken, goes_on, warnings = threading.Event(), threading.Event(), list[str]()

    def hang(*_: Any) -> None:
        try:
            woken.wait(3600)
        finally:
            goes_on.set()
        seed()  # what it does when it wakes up long afterwards

    callback = attached(guarded(Vendor(hang), warnings.append, seconds=0.2), recorder)
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    before = state_of_process()
    happens(callback, logs={})
    happens(callback, logs={})
    assert warnings == [
        "the tracker vendor is disabled for this run: DeadlineOver: it did not return within 0.2 s"
    ]
    woken.set()
    assert goes_on.wait(300)
    assert state_of_process() == before
    recorder.close("finished")
    (line,) = reports(run_directory)
    assert (line.delivered, line.total, line.state) == (0, 2, "behind")


class Everything(Vendor):
    """A tracker with a callback, which records everything else that it receives."""

    def __init__(self) -> None:
        super().__init__(lambda *_: None)
        self.got: list[Any] = []

    def open(self, start: RunStart) -> TrackerRun:
        self.got.append(("open", start.name, start.tracker_run_id))
        return TrackerRun("run-7", "http://127.0.0.1/run-7")

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        self.got.append(("track", name, stage, step))

    def set_params(self, params: Any, name: str | None = None) -> None:
        self.got.append(("params", name, sorted(params)))

    def track_table(self, table: Table) -> None:
        self.got.append(("table", table.name, len(table.rows)))

    def close(self, status: Status, error: str | None = None) -> None:
        self.got.append(("close", status))


def test_besides_its_callback_it_gets_every_event_from_the_first_to_the_last(
    recorder: Recorder, run_directory: Path
) -> None:
    recorder.set_params({"team": "nlp"}, "params")  # before the callback is attached
    vendor = Everything()
    tracker = guarded(vendor)
    callback = attached(tracker, recorder)
    recorder.set_params({"lr": 1.0}, "params")
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))  # by the Trainer, through `on_log`
    happens(callback, logs={"loss": 1.0})
    recorder.track(0.5, "reward", "eval", step=1)
    recorder.track_table(Table("samples", ({"a": 1}, {"a": 2}), "eval", 1))
    recorder.close("finished")
    tracker.save()
    assert vendor.got == [
        ("open", "run", None), ("params", "params", ["team"]), ("params", "params", ["lr", "team"]),
        ("track", "reward", "eval", 1), ("table", "samples", 2), ("close", "finished"),
    ]  # fmt: skip
    (line,) = reports(run_directory)
    assert (line.tracker, line.delivered, line.total, line.state) == ("vendor", 6, 6, "complete")
    assert (line.run_id, line.url) == ("run-7", "http://127.0.0.1/run-7")
    recorder.journal.close()
    (there,) = sync(run_directory, "file", {"file": {"path": str(run_directory / "m.jsonl")}}, reference)
    assert there.state == "complete"


def test_buffered_events_count_as_delivered_after_flush(recorder: Recorder) -> None:
    held: list[float] = []
    stored: list[float] = []

    class Buffering(Vendor):
        def track_point(self, point: MetricPoint) -> None:
            held.extend(point.values.values())

        def flush(self) -> None:
            stored.extend(held)
            held.clear()

    tracker = guarded(Buffering(lambda *_: None))
    attached(tracker, recorder)
    for step in range(1, 6):
        recorder.track(float(step), "mine", "eval", step=step)
    assert tracker._ledger.delivered <= len(stored)
    tracker.save()
    assert stored == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert tracker._ledger.safe_delivered == recorder.journal.last_seq


def test_a_resumed_run_continues_in_its_tracker_run_and_gets_nothing_twice(
    recorder: Recorder, run_directory: Path
) -> None:
    first, second = Everything(), Everything()
    recorder.set_params({"team": "nlp"}, "params")
    tracker = guarded(first)
    attached(tracker, recorder)
    recorder.close("interrupted")
    tracker.save()
    recorder.resumed(0)
    recorder.set_params({"lr": 1.0}, "data")
    guarded(second).attach(run_directory, recorder.journal)
    assert second.got == [("open", "run", "run-7"), ("params", "data", ["lr"])]


def test_what_a_callback_tracks_itself_reaches_its_tracker(recorder: Recorder) -> None:
    vendor = Everything()
    vendor._act = lambda *_: recorder.track(1.0, "own", step=3)
    callback = attached(guarded(vendor), recorder)
    happens(callback)
    assert ("track", "own", None, 3) in vendor.got


def test_a_failed_vendor_is_in_the_report_and_known_to_sync(recorder: Recorder, run_directory: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("client went away")

    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    tracker = guarded(Vendor(fail))
    callback = attached(tracker, recorder)
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 2))
    happens(callback, logs={"loss": 1.0})
    tracker.save()
    (line,) = reports(run_directory)
    assert line.line().startswith(
        "1/2 · it runs in the training process, and was disabled there: RuntimeError"
    )
    assert f"fmstune trackers sync {run_directory}" in line.line()
    assert "abcdefgh123" not in (run_directory / "tracking" / "vendor.json").read_text()
