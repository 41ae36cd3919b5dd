"""A signal at any moment of a run: the journal gets a final status, and signal handlers are restored."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback

import fmstune
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.delivery.shippers import Fleet
from fmstune.errors import Interrupted
from fmstune.run.ending import StopSignals
from fmstune.system.handlers import STOPPING

DEMO: dict[str, Any] = {
    "model.path": "demo", "data.train": "demo", "data.max_rows": 8, "training.max_steps": 1,
    "training.save_strategy": "no", "training.output_dir": "out", "training.eval_strategy": "no",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    usual = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(number, handler) for number, handler in zip(STOPPING, usual, strict=True)]
    yield
    for number, handler in zip(STOPPING, before, strict=True):
        signal.signal(number, handler)


class At(TrainerCallback):
    """Sends a signal to its own process at one of a callback's events."""

    def __init__(self, event: str, signum: int) -> None:
        setattr(self, event, lambda *args, **kwargs: os.kill(os.getpid(), signum))


def signalled(method: Callable[..., Any], signum: int, *, when: Callable[..., bool]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if when(*arguments):
            os.kill(os.getpid(), signum)
        return method(*arguments, **named)

    return wrapped


def dropping(method: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """As a finaliser does with what is raised in it."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        with contextlib.suppress(BaseException):
            return method(*arguments, **named)
        return instead(*arguments, **named)

    return wrapped


MOMENTS = {
    "before the journal": None,
    "before the journal, and it is dropped": None,
    "while the journal is begun": "interrupted",
    "as the trackers are given it": "interrupted",
    "while the model is built": "interrupted",
    "in the training": "interrupted",
    "after the training": "interrupted",
    "as its end is recorded": "finished",
    "while the trackers get the rest": "finished",
}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(("moment", "status"), MOMENTS.items(), ids=MOMENTS)
def test_the_journal_gets_a_final_status_whenever_a_signal_arrives(
    moment: str, status: str | None, signum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callbacks = []
    events = {"while the model is built": "on_init_end", "in the training": "on_step_end",
              "after the training": "on_train_end"}  # fmt: skip
    if moment in events:
        callbacks = [At(events[moment], signum)]
    elif status is None:
        checks = signalled(Fleet.check, signum, when=lambda *arguments: True)
        if "dropped" in moment:
            checks = dropping(checks, Fleet.check)
        monkeypatch.setattr(Fleet, "check", checks)
    elif moment == "while the journal is begun":
        begins = signalled(JournalWriter._begin, signum, when=lambda *arguments: True)
        monkeypatch.setattr(JournalWriter, "_begin", begins)
    elif moment == "as the trackers are given it":
        monkeypatch.setattr(
            Fleet, "start_delivery", signalled(Fleet.start_delivery, signum, when=lambda *arguments: True)
        )
    elif moment == "as its end is recorded":
        ends = signalled(JournalWriter.append, signum, when=lambda journal, kind, fields: kind == "status")
        monkeypatch.setattr(JournalWriter, "append", ends)
    else:
        monkeypatch.setattr(Fleet, "finish", signalled(Fleet.finish, signum, when=lambda fleet: True))
    handlers = [signal.getsignal(each) for each in STOPPING]
    with pytest.raises(Interrupted, match=signum.name):
        fmstune.train(settings=DEMO, callbacks=callbacks, quiet=True)
    if status is None:
        assert not Path("out").exists()
    else:
        last = json.loads(Path("out/tracking/journal.jsonl").read_text().splitlines()[-1])
        assert last["status"] == status
    assert [signal.getsignal(each) for each in STOPPING][:2] == handlers[:2]


def test_a_signal_during_the_last_evaluation_saves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluated = {**DEMO, "data.eval": "demo", "training.eval_strategy": "steps", "training.eval_steps": 1}
    with pytest.raises(Interrupted):
        fmstune.train(settings=evaluated, callbacks=[At("on_evaluate", signal.SIGTERM)], quiet=True)
    assert Path("out/checkpoint-1/trainer_state.json").exists()


def raised_by(ending: StopSignals, event: Any) -> int | None:
    """The number of the signal that interrupts the event."""
    try:
        if event == "hold":
            ending.hold()
        elif event == "release":
            ending.release()
        else:
            signal.raise_signal(event)
    except Interrupted as interrupted:
        return interrupted.signum
    return None


@given(st.lists(st.sampled_from([*STOPPING, "hold", "release"]), max_size=12))
def test_a_signal_is_raised_at_once_or_when_it_is_released(order: list[Any]) -> None:
    ending, holds = StopSignals(), False
    owed: int | None = None
    ending.watch()
    try:
        for each in [*order, "release"]:
            expected = None
            if each == "hold":
                holds = True
            elif each == "release":
                expected, owed, holds = owed, None, False
            elif holds:
                owed = each
            else:
                expected = each
            assert raised_by(ending, each) == expected
    finally:
        ending.leave()
    assert [signal.getsignal(each) for each in STOPPING][1:] == [signal.SIG_DFL, signal.SIG_DFL]
