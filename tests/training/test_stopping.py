"""The effect of signals on a run, and what they leave behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from fmstune.errors import Interrupted
from fmstune.launch import signals as rank_signals
from fmstune.training.callbacks.stopping import StopCallback, stopping


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    # As in a new process, whatever an earlier test or a background job has left.
    usual = (signal.SIG_DFL, signal.SIG_DFL, signal.default_int_handler)
    before = [signal.signal(number, handler) for number, handler in zip(numbers, usual, strict=True)]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_closed_terminal_stops_the_training_once_and_a_second_hangup_changes_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop, said = StopCallback(), list[str]()
    with stopping(stop, said.append):
        stop.training = True
        for _ in range(2):  # from the kernel, and from the shell
            signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)  # while the trackers are flushed
    assert stop.signum == signal.SIGHUP
    assert said == ["SIGHUP: saving a checkpoint after this step"]
    assert Interrupted(signal.SIGHUP).exit_code == 129


def test_before_the_training_a_closed_terminal_ends_the_run() -> None:
    with pytest.raises(Interrupted, match="interrupted by SIGHUP"), stopping(StopCallback(), print):
        signal.raise_signal(signal.SIGHUP)


def test_with_nohup_a_closed_terminal_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopCallback()
    with stopping(stop, print):
        stop.training = True
        signal.raise_signal(signal.SIGHUP)
    assert stop.signum is None
    assert signal.SIGHUP not in rank_signals.listen(Path())
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert signal.SIGHUP in rank_signals.listen(Path())


def forked() -> int:
    """A child that waits for a signal."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                time.sleep(60)
        finally:
            os._exit(7)
    return child


def end_of(child: int, within: float = 300) -> int | None:
    """The exit code of a child; `None` when it did not end, and was killed."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test_sigterm_ends_a_forked_child_at_any_moment() -> None:
    """It ends the workers of a pool and daemonic processes, for which Python then waits."""
    stop = StopCallback()
    with stopping(stop, print):
        stop.training = True
        for _ in range(20):
            child = forked()
            os.kill(child, signal.SIGTERM)
            assert end_of(child) == -signal.SIGTERM
        left = forked()
    os.kill(left, signal.SIGTERM)
    assert end_of(left) == -signal.SIGTERM
    assert stop.signum is None


def test_a_child_forked_from_a_thread_is_ended_by_sigterm() -> None:
    stop, children = StopCallback(), list[int]()
    with stopping(stop, print):
        stop.training = True
        thread = threading.Thread(target=lambda: children.append(forked()))
        thread.start()
        thread.join()
        os.kill(children[0], signal.SIGTERM)
        assert end_of(children[0]) == -signal.SIGTERM


@pytest.mark.parametrize("handler_of_the_user", [True, False])
def test_a_child_has_the_previous_sigterm_handler(handler_of_the_user: bool) -> None:
    def leave(signum: int, frame: object) -> None:
        os._exit(5)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL if handler_of_the_user else leave)
    try:
        stop = StopCallback()
        with stopping(stop, print):
            stop.training = True
            if handler_of_the_user:  # set in a callback, replacing ours
                signal.signal(signal.SIGTERM, leave)
            child = forked()
            os.kill(child, signal.SIGTERM)
            assert end_of(child) == 5
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_the_terminals_first_signal_spares_children_that_the_training_needs(signum: int) -> None:
    def wait(said: int) -> None:
        while stop.signum is None:
            time.sleep(0.005)
        os.write(said, b"1")
        time.sleep(60)

    stop = StopCallback()
    with stopping(stop, print):
        stop.training = True
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                wait(writer)
            finally:
                os._exit(7)
        os.kill(child, signum)
        assert os.read(reader, 1) == b"1"  # it is alive, and has recorded the signal
        os.kill(child, signum)
        # Python's own SIGINT handler raises; SIGHUP ends the process by default.
        assert end_of(child) == (7 if signum == signal.SIGINT else -signum)
    assert stop.signum is None


def test_a_signal_while_the_processes_agree_is_answered_at_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others do not know of it yet: this process must neither stop alone nor forget it."""
    stop, control = StopCallback(), TrainerControl()
    args: Any = SimpleNamespace(world_size=2, device="cpu")

    def agree(numbers: list[int], device: Any) -> list[int]:
        signal.raise_signal(signal.SIGTERM)
        return numbers

    monkeypatch.setattr("fmstune.training.callbacks.stopping._largest", agree)
    with stopping(stop, lambda text: None):
        stop.training = True
        stop.on_step_end(args, TrainerState(), control)
        assert not control.should_training_stop
        stop.on_step_end(args, TrainerState(), control)
    assert control.should_training_stop
    assert control.should_save
    assert stop.asked == signal.SIGTERM


def test_the_first_signal_of_a_process_that_another_has_stopped_is_not_its_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C reaches each process of a terminal, one of them before the others."""
    stop, control = StopCallback(), TrainerControl()
    args: Any = SimpleNamespace(world_size=2, device="cpu")
    of_another = "fmstune.training.callbacks.stopping._largest"
    monkeypatch.setattr(of_another, lambda numbers, device: [signal.SIGINT, *numbers[1:]])
    with stopping(stop, lambda text: None):
        stop.training = True
        stop.on_step_end(args, TrainerState(), control)
        assert control.should_training_stop
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
