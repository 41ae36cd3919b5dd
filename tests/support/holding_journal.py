"""Holds a run's journal open until it is ended: `python -m tests.support.holding_journal DIRECTORY`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.support.made_runs import start_run

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    recorder = start_run(directory)
    recorder.track(1.0, "loss", "train", step=1)
    (directory / "ready").touch()
    signal.pause()
