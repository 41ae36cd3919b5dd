"""A vendor's callback works in the training's process and has no say in the training."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.delivery.in_process import GuardedTracker
from fmstune.delivery.shipping.process import Job
from fmstune.run.tracking import reports
from fmstune.trackers.base import Tracker
from tests.support.journals import open_journal

EVENTS = sorted(name for name in dir(TrainerCallback) if name.startswith("on_"))


class Panic(BaseException):
    """As the one of a Rust extension."""


class Vendor(Tracker):
    """A tracker with a callback of its own, which does the same at each event."""

    def __init__(self, act: Any) -> None:
        super().__init__("vendor")
        self._act = act

    def get_hf_callback(self, *, strict: bool = False) -> TrainerCallback:
        act = self._act

        def event(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            act(args, state, control, kwargs)

        made: TrainerCallback = type("Callback", (TrainerCallback,), dict.fromkeys(EVENTS, event))()
        return made


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
def test_what_a_vendors_callback_changes_is_its_own(event: str, tmp_path: Path) -> None:
    warnings: list[str] = []
    args = TrainingArguments(str(tmp_path), max_steps=9, lr_scheduler_kwargs={"a": 1}, report_to=[])
    state = TrainerState(
        max_steps=9, log_history=[{"loss": 1.0}], stateful_callbacks={"mine": {"args": {"a": 1}}}
    )
    control = TrainerControl()
    given = {"logs": {"loss": 1.0}, "metrics": {"eval_loss": {"a": 1.0}}}
    callback = GuardedTracker(Vendor(spoil), warnings.append).get_hf_callback()
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
def test_a_vendor_changes_nothing_of_the_process_that_the_training_depends_on(
    hook: str, act: Any, tmp_path: Path
) -> None:
    """A random number that it draws would give the model other weights, and a folder another place."""
    vendor = Vendor(act)
    vendor.track = vendor.close = act  # type: ignore[method-assign]
    guest = GuardedTracker(vendor, lambda text: None)
    callback = guest.get_hf_callback()
    before = state_of_process()
    if hook == "callback":
        args = TrainingArguments(str(tmp_path), report_to=[])
        before = state_of_process()
        callback.on_step_end(args, TrainerState(), TrainerControl())
    elif hook == "track":
        guest.track(1.0, "loss", None, 1)
    else:
        guest.close("finished", None)
    assert state_of_process() == before


@pytest.mark.parametrize(
    "error", [RuntimeError, SystemExit, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, Panic]
)
def test_whatever_a_vendors_callback_raises_disables_it_with_a_word(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise error("client went away")

    monkeypatch.setattr(signal, "getsignal", lambda _: print)  # as in a run, which has its own handler
    warnings: list[str] = []
    guest = GuardedTracker(Vendor(fail), warnings.append)
    callback = guest.get_hf_callback()
    for _ in range(2):
        callback.on_log(
            TrainingArguments(str(tmp_path), report_to=[]), TrainerState(), TrainerControl(), logs={}
        )
    said = f"the tracker vendor is disabled for this run: {error.__name__}: client went away"
    assert warnings == [said]


def test_ctrl_c_where_python_has_its_own_handler_is_no_fault_of_the_vendors(tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    callback = GuardedTracker(Vendor(stop), print).get_hf_callback()
    with pytest.raises(KeyboardInterrupt):
        callback.on_log(TrainingArguments(str(tmp_path), report_to=[]), TrainerState(), TrainerControl())


def test_a_vendor_that_has_failed_is_in_the_report_and_known_to_sync(run_directory: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("client went away")

    journal = open_journal(run_directory)
    journal.append("metrics", {"values": {"loss": 1.0}})
    job = Job("vendor", "tests.delivery.test_in_process:Vendor", {"api_key": "abcdefgh123"})
    guest = GuardedTracker(Vendor(fail), lambda text: None, job)
    guest.note_failure(run_directory)
    assert reports(run_directory) == []
    guest.guard(fail)()
    guest.note_failure(run_directory)
    (line,) = reports(run_directory)
    assert line.line().startswith(
        "0/1 · it works in the training process, and was disabled there: RuntimeError"
    )
    assert f"fmstune trackers sync {run_directory}" in line.line()
    assert "abcdefgh123" not in (run_directory / "tracking" / "vendor.json").read_text()
