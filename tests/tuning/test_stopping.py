"""What signals do to a run, and what they leave behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from fmstune.cli import rank_signals
from fmstune.tuning.stopping import Interrupted, StopCallback, stopping


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_closed_terminal_stops_the_training_once_and_a_second_notice_of_it_changes_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop, said = StopCallback(), list[str]()
    with stopping(stop, said.append):
        stop.training = True
        for _ in range(2):  # of the kernel, and of the shell
            signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)  # while the trackers get their time
    assert stop.signum == signal.SIGHUP
    assert said == ["SIGHUP: saving a checkpoint after this step"]
    assert Interrupted(signal.SIGHUP).exit_code == 129


def test_before_the_training_a_closed_terminal_ends_the_run() -> None:
    with pytest.raises(Interrupted, match="interrupted by SIGHUP"), stopping(StopCallback(), print):
        signal.raise_signal(signal.SIGHUP)


def test_after_nohup_a_closed_terminal_is_nobodys_concern() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopCallback()
    with stopping(stop, print):
        stop.training = True
        signal.raise_signal(signal.SIGHUP)
    assert stop.signum is None
    assert signal.SIGHUP not in rank_signals.listen()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert signal.SIGHUP in rank_signals.listen()
