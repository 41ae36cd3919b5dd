"""The conformance kit detects what a tracker breaks, reports it in a sentence, and accuses no correct one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fmstune.testing import Delivered, Examination, Findings, Stored, TrackerConformance, examine
from tests.support import faulty_trackers as trackers
from tests.support.commands import fmstune


class TestSound(TrackerConformance):
    tracker = trackers.Sound
    read = staticmethod(trackers.read)


class TestStoresAll(TrackerConformance):
    tracker = trackers.StoresAll
    read = staticmethod(trackers.read_all)


class TestPrompts(TrackerConformance):
    tracker = trackers.Prompts
    read = staticmethod(trackers.read)


class TestOldShape(TrackerConformance):
    tracker = trackers.Old


BROKEN = {
    ("Doubles", "redelivery"): "train/loss has 5 values too many",
    ("Doubles", "kills"): "train/loss has 2 values too many",
    ("LosesLate", "late_events"): "train/loss at step 3 is missing: 0.3333333333333333",
    ("Buffers", "kills"): " more like these.\nBREAKS  If the SDK buffers, let `flush` wait until everything "
    'is stored; if it stores a run only at its end, set durable_on = "close".',
    ("OneForAll", "two_at_once"): "keep all state in the instance",
    ("FailsAtNaN", "unusual_values"): "It fails at a metric that is NaN: ValueError: what is nan?. "
    "Declare limits = Limits(nan=False).",
    ("DiesAtNul", "unusual_values"): "It fails at a param with the character NUL: its process ended with "
    "exit code 7. Declare limits = Limits(nul=False).",
    ("ForgetsParams", "whole_run"): "the param params.data.seed is missing: 1",
    ("DropsTables", "whole_run"): "Counted as delivered, but the table eval/samples at step 5 is missing.",
    ("CutsTables", "whole_run"): "the table eval/samples at step 5 has 1 rows instead of 2.",
    ("LosesCells", "whole_run"): "has None instead of 3 in row 1, column tokens.",
    ("DropsHistograms", "unusual_values"): "the histogram eval/a histogram/ü at step 1 is missing.",
    ("DropsArtifacts", "whole_run"): "Counted as delivered, but the artifact model is missing.",
    ("FlattensArtifacts", "whole_run"): "the file nested/ü (1).txt of the artifact model is missing.",
    ("DropsParamsOfTables", "whole_run"): "the param eval/samples/step 5.1.prompt is missing: 'Hi'",
    ("NewRunEachTime", "resumed_run"): "open the run `start.tracker_run_id`",
    ("SaysFinished", "unusual_values"): "The run ended as failed, but the service has finished",
    ("KeepsEnvironment", "whole_run"): "secrets included: environment.json",
    ("Eager", "interface"): "It creates opened before a run is opened; do that in `open`.",
    ("Eager", "check"): "check creates checked; it must not change anything.",
    ("LeavesWithSuccess", "whole_run"): "its process ended with exit code 0.",
    ("HangsAtTheEnd", "empty_run"): "its process did not return within 1 s",
    ("Slow", "speed"): "ms; send them in batches",
}  # fmt: skip
"""What is detected in which tracker by which examination."""


def examined(name: str, what: str, folder: Path) -> Findings:
    made = Examination(
        f"tests.support.faulty_trackers:{name}", {}, folder,
        trackers.read_all if issubclass(getattr(trackers, name), trackers.StoresAll) else trackers.read,
        life_timeout=1 if name.startswith("Hangs") else 120,
        slowest_event=0.001 if name == "Slow" else math.inf,
    )  # fmt: skip
    found: Findings = getattr(made, what)()
    return found


@pytest.mark.parametrize(("name", "what"), BROKEN)
def test_what_a_tracker_breaks_is_reported_in_a_sentence(name: str, what: str, tmp_path: Path) -> None:
    findings = examined(name, what, tmp_path)
    assert not findings.ok
    assert BROKEN[name, what] in str(findings)


def test_what_is_not_compared_is_named(tmp_path: Path) -> None:
    def points_only(delivered: Delivered) -> Stored:
        return Stored(trackers.read(delivered).points)

    said = [
        str(Examination(tracker, {}, tmp_path / str(number), read).whole_run())
        for number, (tracker, read) in enumerate(
            [
                (trackers.StoresAll, trackers.read_all),
                (trackers.StoresAll, trackers.read),
                (trackers.Sound, points_only),
                (trackers.Sound, None),
            ]
        )
    ]
    assert said[0].endswith("from its process's environment.")
    assert said[1].endswith("Not compared, since `read` does not return them: tables, media, artifacts.")
    assert said[2].endswith("Not compared, since `read` does not return them: params, status.")
    assert said[3].endswith(
        "A run is delivered without anything from its process's environment. "
        "Nothing was compared: there is no `read`."
    )


def test_all_findings_about_the_class_are_reported_together(tmp_path: Path) -> None:
    said = "\n".join(examined("Eager", "interface", tmp_path).breaks)
    for part in (
        "it was given 't'",
        "accepts an unknown option",
        "track(None, 'loss') does not raise ValueError",
    ):
        assert part in said


def test_a_tracker_that_cannot_be_imported_is_reported(tmp_path: Path) -> None:
    findings = examine("tests.support.faulty_trackers:Nobody", {}, tmp_path)
    (said,) = findings.breaks
    assert "cannot be loaded from tests.support.faulty_trackers:Nobody: AttributeError" in said
    (said,) = examine("no_such_module:Nobody", {}, tmp_path / "other").breaks
    assert "ModuleNotFoundError: No module named 'no_such_module'" in said

    class Local(trackers.Sound):
        pass

    with pytest.raises(ValueError, match="define it at the top level of a module"):
        Examination(Local, {}, tmp_path)


_SCRIPT = """
import sys
from fmstune import Tracker
from fmstune.testing import examine
class Mine(Tracker):
    def track(self, metric, name, stage=None, *, step=None):
        super().track(metric, name, stage)
    def set_params(self, params, name=None):
        super().set_params(params, name)
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_can_examine_its_own_class_again_and_again(guarded: bool, tmp_path: Path) -> None:
    call = "if __name__ == '__main__':\n    " if guarded else ""
    (tmp_path / "script.py").write_text(f"{_SCRIPT}{call}print(examine(Mine))\n")
    for number in (1, 2):
        done = fmstune(cwd=tmp_path, module=str(tmp_path / "script.py"), light=True)
        assert done.returncode == 0, done.stderr
        if guarded:
            assert "keeps   A killed process loses nothing." in done.stdout
            assert "BREAKS" not in done.stdout
        else:
            (line,) = done.stdout.splitlines()
            assert line.startswith("BREAKS  the tracker ")
            assert "examine was called while the module was imported" in line
        assert len(list(tmp_path.glob("conformance*"))) == number
    with pytest.raises(ValueError, match="conformance already exists; give another folder"):
        examine(trackers.Sound, {}, tmp_path / "conformance")


def test_a_check_that_hangs_is_reported_in_time(tmp_path: Path) -> None:
    made = Examination("tests.support.faulty_trackers:HangsInItsCheck", {}, tmp_path, life_timeout=1)
    assert "its process did not return within 1 s" in str(made.check())


def test_without_pytest_all_findings_are_printed_as_sentences(tmp_path: Path) -> None:
    findings = examine(trackers.Sound, {}, tmp_path / "kit", trackers.read)
    assert findings.ok
    assert len(str(findings).splitlines()) == 11
    assert "keeps   Events that are delivered twice change nothing." in str(findings)
