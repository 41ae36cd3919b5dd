"""Third-party trackers in real runs: a vendor's callback, and a tracker with the old interface."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import fmstune
from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.ledger import load_ledger
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.run.tracking import TrackerCheckFailed
from fmstune.trackers.records import Check, MetricPoint, RunStart, TrackerRun
from tests.sample_trackers import collected
from tests.support.tracked import tune

COLLECTOR = "tests.sample_trackers:Collector"
VENDOR_SAW: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Vendor:
    """A vendor's tracker with a callback of its own, which fails in mid-training."""

    def __init__(self, name: Any = None, tracker_config: Any = None) -> None:
        self.seen: list[Any] = []

    def get_hf_callback(self) -> Any:
        import fmstune

        # A shipper only checks whether there is one, and would import transformers for three seconds.
        transformers: Any = sys.modules.get("transformers")
        seen, base = VENDOR_SAW, transformers.TrainerCallback if transformers else object

        class VendorCallback(base):  # type: ignore[misc,valid-type]
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                seen.append(("log", state.global_step, os.getpid()))
                fmstune.track(0.5, "from_user_code", "eval")
                control.should_training_stop = True  # a tracker cannot stop the training
                if state.global_step >= 6:
                    raise RuntimeError("vendor down")

        return VendorCallback()

    def track(self, metric: Any, name: str, stage: str) -> None:
        VENDOR_SAW.append(("track", name, stage))

    def set_params(self, params: Any, name: str) -> None:
        VENDOR_SAW.append(("params", name))


def test_a_vendors_callback_runs_guarded_in_process_and_receives_user_metrics() -> None:
    VENDOR_SAW.clear()
    result, shown = tune("out", trackers=("tests.run.test_other_trackers:Vendor",), params=("team=nlp",))
    assert ("log", 2, os.getpid()) in VENDOR_SAW
    assert ("track", "from_user_code", "eval") in VENDOR_SAW
    assert {"params", "config", "packages"} <= {entry[1] for entry in VENDOR_SAW if entry[0] == "params"}
    assert max(entry[1] for entry in VENDOR_SAW if entry[0] == "log") == 6
    assert "is disabled for this run: RuntimeError: vendor down" in shown
    events = list(JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME)))
    tracked = [event.step for event in events if "from_user_code" in event.values]
    assert tracked[:2] == [2, 4]
    assert events[-1].status == "finished"
    (line,) = result.delivery  # what it missed is reported, and delivered by `sync`
    assert (line.tracker, line.state) == ("tests.run.test_other_trackers:Vendor", "behind")
    assert "vendor down" in str(line.error)
    assert result.metrics["train/train_runtime"] > 0


class ByTheNote:
    """A tracker with exactly the interface of the design note."""

    def __init__(self, name: Any = None, tracker_config: Any = None) -> None:
        self.name, self.config = name, tracker_config

    def get_hf_callback(self) -> Any:
        return None

    def track(self, metric: Any, name: str, stage: str) -> None:
        self._write("track", stage, name, metric)

    def set_params(self, params: Any, name: str) -> None:
        self._write("params", name, sorted(params))

    def _write(self, *what: Any) -> None:
        with Path(self.config["path"]).open("a") as file:
            file.write(json.dumps([os.getpid(), *what]) + "\n")


def test_a_tracker_with_the_design_notes_interface_gets_everything_in_its_own_process(
    tmp_path: Path,
) -> None:
    name, path = "tests.run.test_other_trackers:ByTheNote", tmp_path / "note"
    result, _ = tune("out", f"trackers.'{name}'.path='{path}'", trackers=(name,), params=("team=nlp",))
    (line,) = result.delivery
    assert (line.state, line.delivered) == ("complete", line.total)
    got = [json.loads(row) for row in path.read_text().splitlines()]
    assert os.getpid() not in {row[0] for row in got}
    events = list(JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME)))
    numbers = [value for event in events for value in event.values.values() if event.kind == "metrics"]
    assert len([row for row in got if row[1] == "track"]) == len(numbers)
    namespaces = {event.name for event in events if event.kind == "params"}
    assert {row[2] for row in got if row[1] == "params"} == namespaces >= {"params", "config", "packages"}


class _Lines(fmstune.Tracker):
    """Writes a line for each value into a file of its class's name."""

    def track(self, metric: Any, name: str, stage: str | None = None, *, step: int | None = None) -> None:
        with Path(type(self).__name__).open("a") as file:
            file.write(f"{stage}/{name} {step}\n")


class OpensAsNothing(_Lines):
    def open(self, start: RunStart) -> TrackerRun:
        return None  # type: ignore[return-value]


class OpensAsText(_Lines):
    def open(self, start: RunStart) -> TrackerRun:
        return "run 1"  # type: ignore[return-value]


class Prompts(_Lines):
    """Asks for a key, as the logins of some SDKs do."""

    def open(self, start: RunStart) -> TrackerRun:
        with contextlib.suppress(EOFError):
            raise RuntimeError(f"the key {input('your key: ')} is wrong")
        return super().open(start)


class Forks(_Lines):
    """Each call also returns in a child."""

    idempotent = True

    def track_point(self, point: MetricPoint) -> None:
        for name in point.values:
            self.track(0, name, point.stage, step=point.step)
        if (child := os.fork()) != 0:
            os.waitpid(child, 0)


def test_whatever_open_returns_or_asks_and_whatever_a_call_forks_the_run_gets_each_value_once() -> None:
    names = [f"{__name__}:{cls.__name__}" for cls in (OpensAsNothing, OpensAsText, Prompts, Forks)]
    result, shown = tune("out", "training.max_steps=2", trackers=tuple(names))
    events = JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME))
    tracked = sorted(
        f"{event.stage}/{name} {event.step}"
        for event in events
        if event.kind == "metrics"
        for name in event.values
    )
    states = {line.tracker.rpartition(":")[2]: line for line in result.delivery}
    for name in ("OpensAsNothing", "Prompts", "Forks"):
        assert states[name].state == "complete", shown
        assert sorted(Path(name).read_text().splitlines()) == tracked
    assert "its `open` returned str; return a TrackerRun" in str(states["OpensAsText"].error)


class ChecksNothing(_Lines):
    def check(self, timeout: float) -> Check:
        return None  # type: ignore[return-value]


class ChecksOddly(_Lines):
    def check(self, timeout: float) -> Check:
        return Check("fine", "all is well")  # type: ignore[arg-type]


class ItsClass(Vendor):
    def get_hf_callback(self) -> Any:
        return type(super().get_hf_callback())


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        (ChecksNothing, "its check returned None. Let it return a Check"),
        (ChecksOddly, "its check returned Check(state='fine'"),
        (ItsClass, "get_hf_callback returned the class VendorCallback; return an instance of it"),
    ],
)
def test_a_tracker_that_returns_something_else_is_refused_before_the_run(tracker: type, said: str) -> None:
    with pytest.raises(TrackerCheckFailed) as refused:
        tune("out", trackers=(f"{__name__}:{tracker.__name__}",))
    assert said in str(refused.value)


def test_a_tracker_with_options_is_delivered_to_in_another_process(tmp_path: Path) -> None:
    tune("out", f"trackers.'{COLLECTOR}'.path='{tmp_path}/c'", trackers=(COLLECTOR,))
    calls = collected(tmp_path / "c")
    assert {call["pid"] for call in calls} != {os.getpid()}
    assert calls[-1]["call"] == "close"
    assert calls[-1]["status"] == "finished"
    ledger = load_ledger(Path("out"), COLLECTOR)
    assert ledger is not None
    assert load_ledger(Path("out/checkpoint-6"), COLLECTOR) is not None
