"""A vendor's callback works in the training's process and has no say in the training."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.delivery.in_process import GuardedTracker
from fmstune.trackers.base import Tracker

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
