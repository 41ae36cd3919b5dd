"""Whichever requests to a service fail, on their way or on the way back, it gets everything once."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fmstune
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.report import report
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.layout import TRACKING_DIR
from fmstune.secrets.redaction import Redactor
from fmstune.trackers.base import Tracker
from fmstune.trackers.clearml_tracker import ClearmlTracker
from fmstune.trackers.comet_tracker import CometTracker
from fmstune.trackers.records import MetricPoint
from fmstune.trackers.swanlab_tracker import SwanLabTracker
from tests.support.clearml_cloud import ClearmlCloud
from tests.support.comet_cloud import CometCloud
from tests.support.failing_requests import How, failing_requests
from tests.support.journals import close_journals, open_journal
from tests.support.swanlab_cloud import SwanLabCloud

STEPS = range(1, 7)
LOSSES = [("train/loss", step, step / 8) for step in STEPS]
ANSWERS = [step for step in STEPS if step % 3 == 0]

FAILURES = st.dictionaries(
    st.integers(1, 40), st.sampled_from(["refused", "unanswered", "page", "redirected"]), max_size=4
)
SEARCH = settings(deadline=None, max_examples=10)


class Stored:
    """What a stand-in holds: the losses, and the steps of the texts."""

    def __init__(self, losses: list[Any], answers: list[int]) -> None:
        self.losses, self.answers = sorted(losses), sorted(answers)


@contextlib.contextmanager
def a_clearml() -> Iterator[tuple[int, dict[str, str], Callable[[], Stored]]]:
    with ClearmlCloud() as cloud:

        def stored() -> Stored:
            (task,) = cloud.tasks
            events = cloud.events(task)
            found = [(f"{e['metric']}/{e['variant']}", e["iter"], e.get("value")) for e in events]
            losses = [each for each in found if each[0] == "train/loss"]
            pages = {step for step in STEPS for data in cloud.files.values() if b"text %d" % step in data}
            return Stored(
                losses, [step for name, step, _ in found if name == "eval/answer" and step in pages]
            )

        yield int(cloud.url.rpartition(":")[2]), cloud.environment, stored


@contextlib.contextmanager
def a_comet() -> Iterator[tuple[int, dict[str, str], Callable[[], Stored]]]:
    with CometCloud() as cloud:

        def stored() -> Stored:
            losses = [each for each in cloud.run.read() if each[0] == "train/loss"]
            texts = [each for each in cloud.run.assets if each["kind"] == "text-sample"]
            return Stored(losses, [int(each["step"]) for each in texts])

        yield (
            int(cloud.root.rpartition(":")[2]),
            {"COMET_URL_OVERRIDE": cloud.url, "COMET_API_KEY": cloud.key},
            stored,
        )


@contextlib.contextmanager
def a_swanlab() -> Iterator[tuple[int, dict[str, str], Callable[[], Stored]]]:
    with SwanLabCloud() as cloud:

        def stored() -> Stored:
            (run,) = cloud.runs.values()
            losses = [each for each in run.scalars if each[0] == "train/loss"]
            return Stored(losses, [each["index"] for each in run.media if each["key"] == "eval/answer"])

        yield int(cloud.url.rpartition(":")[2]), cloud.environment, stored


SERVICES: dict[type[Tracker], Any] = {
    ClearmlTracker: a_clearml,
    CometTracker: a_comet,
    SwanLabTracker: a_swanlab,
}


@pytest.mark.parametrize("kind", SERVICES)
@given(FAILURES)
@example({11: "page"})
@example({14: "page"})
@example({16: "refused", 19: "refused"})
@SEARCH
def test_everything_arrives_once_and_nothing_is_counted_that_did_not(
    kind: type[Tracker], failures: dict[int, How]
) -> None:
    with tempfile.TemporaryDirectory() as name, SERVICES[kind]() as (port, environment, stored):
        directory = Path(name, "run")
        record(directory)
        with failing_requests(port) as (failing, address), pytest.MonkeyPatch.context() as patch:
            patch.chdir(name)
            for key, value in environment.items():
                patch.setenv(key, value.replace(f"http://127.0.0.1:{port}", address))
            failing.failures = failures
            for _ in range(12):
                tracker = kind()
                ledger = load_ledger(directory, tracker.name) or Ledger(tracker.name)
                with contextlib.suppress(DeliveryFailed):
                    Delivery(directory, tracker, ledger).run(lambda: True)
                (line,) = report(directory, [tracker.name])
                if line.state == "complete":
                    break
        assert line.state == "complete", line
        found = stored()
        assert found.losses == LOSSES
        assert found.answers == ANSWERS


def record(directory: Path) -> None:
    """A finished run of a few steps with texts and params."""
    (directory / TRACKING_DIR).mkdir(parents=True)
    recorder = Recorder(open_journal(directory), Redactor({}))
    try:
        with active(recorder):
            for step in STEPS:
                recorder.track_point(MetricPoint({"loss": step / 8}, "train", step))
                if step % 2:
                    fmstune.set_params({f"at {step}": step}, "params")
                if step in ANSWERS:
                    fmstune.track_text(f"text {step}", "answer", stage="eval", step=step)
        recorder.close("finished")
    finally:
        close_journals()
