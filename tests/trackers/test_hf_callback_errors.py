"""In a user's own training, errors of trackers and values never reach the training unless strict."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

from tests.support.logs import Logs
from tests.support.user_trainer import RaisingTracker, log, own_callback, user_trainer


@pytest.mark.parametrize("error", [RuntimeError("on fire"), SystemExit(3)], ids=["raises", "exits"])
@pytest.mark.parametrize(
    "at", ["open", "track", "set_params", "train_ended", "close", "everything", "grad_norm"]
)
def test_tracker_errors_do_not_reach_the_training_and_are_logged_once(
    at: str, error: BaseException, tmp_path: Path, caplog: Logs
) -> None:
    tracker = RaisingTracker(at, error)
    callback = own_callback(tracker)
    trainer = user_trainer(callback, tmp_path)
    trainer.train()
    callback.close()
    assert trainer.state.global_step == 2
    assert tracker.opened == 1
    assert caplog.record_tuples[0][:2] == ("fmstune", logging.WARNING)
    assert type(error).__name__ in caplog.messages[0]
    assert len(caplog.messages) <= 3  # the others: that it is disabled, and how much it did not receive
    if at in ("track", "set_params", "grad_norm"):
        assert "not delivered: " in caplog.messages[-1]
    if at == "grad_norm":  # a refused metric does not affect the others
        assert tracker.got.count("loss") == 2
        assert tracker.got.count("learning_rate") == 2


def test_strict_raises_what_the_tracker_raises(tmp_path: Path) -> None:
    trainer = user_trainer(
        own_callback(RaisingTracker("track", RuntimeError("on fire")), strict=True), tmp_path
    )
    with pytest.raises(RuntimeError, match="on fire"):
        trainer.train()


class Hostile:
    """A value whose every attribute raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def fails(self, *_: Any) -> Any:
        raise self.error

    __str__ = __repr__ = __float__ = __iter__ = __bool__ = __len__ = item = tolist = to_dict = fails

    def __getattr__(self, name: str) -> Any:
        raise self.error


ERRORS = st.sampled_from(
    [RuntimeError("no"), SystemExit(3), GeneratorExit(), RecursionError(), OSError(28, "full")]
)


HOSTILE = st.builds(Hostile, ERRORS)


VALUES = st.one_of(
    HOSTILE, st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(HOSTILE),
    st.just(torch.zeros(2, device="meta")), st.just(np.float16(1.5)),
)  # fmt: skip


LOGS = st.dictionaries(
    st.one_of(st.text(), st.integers(), st.none(), st.just("loss"), st.just("num_tokens")), VALUES
)


EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


@given(
    events=st.lists(st.sampled_from(EVENTS), max_size=6),
    logs=st.one_of(LOGS, HOSTILE),
    args=st.one_of(HOSTILE, st.builds(SimpleNamespace, run_name=VALUES, output_dir=VALUES)),
    state=st.one_of(
        HOSTILE,
        st.builds(
            SimpleNamespace, is_world_process_zero=st.just(True), global_step=VALUES, epoch=VALUES,
            log_history=st.just([]),
        ),
    ),
    config=VALUES,
    at=st.sampled_from(["nothing", "open", "track", "set_params", "train_ended", "close", "everything"]),
    error=ERRORS,
)  # fmt: skip
@settings(max_examples=80)
def test_no_event_raises_whatever_its_arguments_and_whatever_the_tracker_does(
    events: list[str], logs: Any, args: Any, state: Any, config: Any, at: str, error: BaseException
) -> None:
    callback = own_callback(RaisingTracker(at, error))
    for event in ["on_train_begin", *events, "on_log"]:
        given = {"logs": logs} if event == "on_log" else {"metrics": logs} if event == "on_predict" else {}
        getattr(callback, event)(args, state, None, model=SimpleNamespace(config=config), **given)
    callback.close("failed", "no")


def test_a_raising_value_does_not_affect_other_values() -> None:
    tracker = RaisingTracker("nothing", RuntimeError())
    log(own_callback(tracker), {"bad": Hostile(SystemExit(3)), 0: 1.0, "x": 2.0})
    assert tracker.got == ["bad", "0", "x"]


def test_strict_also_raises_errors_from_outside_the_tracker() -> None:
    logs: Any = Hostile(SystemExit(3))
    with pytest.raises(SystemExit):
        log(own_callback(RaisingTracker("nothing", RuntimeError()), strict=True), logs)


def test_interrupts_and_exceptions_of_signal_handlers_are_passed_on() -> None:
    def stop(*_: Any) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        for call, kind in (
            (lambda: os.kill(os.getpid(), signal.SIGUSR1), SystemExit),
            (stop_by_hand, KeyboardInterrupt),
        ):
            tracker = RaisingTracker("nothing", RuntimeError())
            tracker.track = lambda *_, call=call, **__: call()  # type: ignore[method-assign]
            with pytest.raises(kind):
                log(own_callback(tracker), {"x": 1.0})
    finally:
        signal.signal(signal.SIGUSR1, before)


def stop_by_hand() -> None:
    raise KeyboardInterrupt
