"""The system clock is set while a run goes on, as by NTP after a boot: its duration is right."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from fmstune.report.ending import ending
from fmstune.report.summary import read_summary
from tests.support.journals import events
from tests.support.short_runs import train

_clock = time.time
_set_by = [0.0]


class SetClock(TrainerCallback):
    """Sets the clock after the first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            time.time = lambda: _clock() + _set_by[0]


@pytest.mark.parametrize("hours", [5, -5])
def test_the_duration_of_a_run_does_not_depend_on_the_clock(
    hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", _clock)  # restores it
    monkeypatch.chdir(tmp_path)
    _set_by[0] = 3600.0 * hours
    began = time.monotonic()
    train(tmp_path / "out", f'run.callbacks=["{__name__}:SetClock"]')
    took = time.monotonic() - began
    stamps = [event.time for event in events(tmp_path / "out")]
    assert abs(stamps[-1] - stamps[0]) > 17_000, "the clock was not set"

    seconds = read_summary(tmp_path / "out")[0].seconds
    assert seconds is not None
    assert 0 < seconds <= took
    assert 0 < ending(tmp_path / "out").seconds <= took + 60  # with the imports of this process
