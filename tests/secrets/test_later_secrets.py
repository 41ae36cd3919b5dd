"""Secrets that a process learns after a run has started: `load_dotenv()` in a user's module."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.recorder import Recorder
from fmstune.secrets.redaction import hide, know_secrets, process_redactor, process_secrets
from fmstune.trackers.records import MetricPoint, Table
from tests.support.journals import journal_path, open_journal

SECRET = "Tr0ub4dor-zz9x7Q"


def test_a_secret_added_to_the_environment_during_a_run_reaches_no_later_journal_line(
    run_directory: Path,
) -> None:
    recorder = Recorder(open_journal(run_directory))
    recorder.track_point(MetricPoint({f"loss of {SECRET}": 1.0}, "train", 1))  # not known to be secret yet
    before = journal_path(run_directory).stat().st_size
    os.environ["DB_PASSWORD"] = SECRET
    recorder.track_point(MetricPoint({f"loss of {SECRET}": 1.0}, "train", 2))
    recorder.track_point(MetricPoint({"said": f"with {SECRET}"}, "train", 2))
    recorder.set_params({"note": f"with {SECRET}", "nested": [{"a": SECRET}]}, SECRET)
    recorder.track_table(Table("samples", ({"text": f"as {SECRET}"},), "eval", 2))
    recorder.close("failed", f"ValueError: {SECRET}")
    written = journal_path(run_directory).read_text()[before:]
    assert SECRET not in written
    assert [event.step for event in JournalReader(journal_path(run_directory)) if event.step][:2] == [1, 2]


def test_a_secret_removed_from_the_environment_stays_secret_until_the_next_run() -> None:
    know_secrets(())
    os.environ["DB_PASSWORD"] = SECRET
    held = process_redactor()
    assert SECRET not in held.text(SECRET)
    del os.environ["DB_PASSWORD"]
    assert SECRET not in hide(SECRET)
    assert SECRET in process_secrets()  # these are passed to the shippers
    know_secrets(())
    assert held.text(SECRET) == SECRET


def test_checking_the_environment_at_each_event_costs_next_to_nothing() -> None:
    redactor = process_redactor()
    os.environ |= {f"VARIABLE_{number}": str(number) for number in range(300)}
    _ = redactor.known
    began = time.thread_time()
    for _ in range(1000):
        _ = redactor.known
    assert time.thread_time() - began < 0.1  # 50 µs per check, with `dict(os.environ)`
