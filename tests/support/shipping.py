"""Runs with one tracker, a `Collector`, delivered by real shippers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder
from fmstune.delivery.report import report
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.main import EXIT_BUSY, EXIT_DONE
from fmstune.delivery.shipping.process import Job
from fmstune.trackers.base import Tracker
from fmstune.trackers.records import MetricPoint
from tests.sample_trackers import collected
from tests.support.waiting import wait_for

COLLECTOR = "tests.sample_trackers:Collector"


def job(path: Path, **options: Any) -> Job:
    """The job of a shipper for a `Collector` that writes to this path."""
    return Job("collector", COLLECTOR, {"path": str(path), **options})


def record_steps(recorder: Recorder, first: int, last: int) -> None:
    """Track a loss at each of these steps."""
    for step in range(first, last + 1):
        recorder.track_point(MetricPoint({"loss": 1 / step}, "train", step, step / 10))


def steps_in(path: Path) -> list[int]:
    """The steps that a `Collector` received, in order."""
    return [call["step"] for call in collected(path) if call["call"] == "track"]


def deliver(
    recorder: Recorder,
    directory: Path,
    made: Job,
    close_timeout: float = 300,
    before_end: Callable[[], object] | None = None,
) -> float:
    """A run of 10 steps with one tracker, from start to end; returns the seconds that closing it took.

    `before_end` is awaited between the last event and the end of the run.
    """
    fleet = Fleet([made], check_within=None, close_timeout=close_timeout)
    fleet.start_delivery(directory)
    recorder.set_params({"team": "nlp"}, "params")
    record_steps(recorder, 1, 10)
    recorder.close("finished")
    if before_end is not None:
        wait_for(before_end)
    began = time.monotonic()
    fleet.finish()
    return time.monotonic() - began


def delivered_by(tracker: Tracker, directory: Path) -> Ledger:
    """The ledger after a complete delivery in this process."""
    ledger = load_ledger(directory, tracker.name) or Ledger(tracker.name)
    Delivery(directory, tracker, ledger).run(lambda: True)
    (line,) = report(directory, [tracker.name])
    assert line.state == "complete", line
    found = load_ledger(directory, tracker.name)
    assert found is not None
    return found


TRAINER = """
import os, sys, time
from pathlib import Path
from fmstune.delivery.shippers import Fleet
from fmstune.delivery.shipping.process import Job
from fmstune.delivery.recorder import Recorder
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.records import MetricPoint
from tests.support.journals import open_journal
directory = Path(sys.argv[1])
recorder = Recorder(open_journal(directory), Redactor({}))
fleet = Fleet([Job("collector", "tests.sample_trackers:Collector", eval(sys.argv[2]))], check_within=None,
              close_timeout=3)
fleet.start_delivery(directory)
for step in range(1, 21):
    recorder.track_point(MetricPoint({"loss": 1 / step}, "train", step))
print(fleet._ships[0].process.pid, flush=True)
time.sleep(600)
"""
"""A trainer of 20 steps that then waits, in a process that a test can kill."""


def start_trainer(directory: Path, options: dict[str, Any]) -> tuple[subprocess.Popen[str], int]:
    """Start TRAINER; returns its process, and the id of the delivering process."""
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(directory), repr(options)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert trainer.stdout is not None
    return trainer, int(trainer.stdout.readline())


def alive(pid: int) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


CAUSES = {
    "raise": "RuntimeError: the service is on fire",
    "exit": "SystemExit: tracker says good-bye",
    "kill": "its process died of SIGKILL",
    "segv": "its process died of SIGSEGV",
    "os_exit": "its process ended with exit code 0",
    # fmstune's own, which mean something else if fmstune ends the process
    f"os_exit{EXIT_DONE}": f"its process ended with exit code {EXIT_DONE}",
    f"os_exit{EXIT_BUSY}": f"its process ended with exit code {EXIT_BUSY}",
}
"""The message for each fault that ends a tracker's process or raises."""
