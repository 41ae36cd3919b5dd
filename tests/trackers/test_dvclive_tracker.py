"""DVCLive's tracker, read back by DVC itself, inside and outside a Git repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fmstune
from fmstune.delivery.ledger import Ledger, load_ledger
from fmstune.delivery.recorder import Recorder, active
from fmstune.delivery.shipping.deliver import Delivery
from fmstune.delivery.shipping.progress import DeliveryFailed
from fmstune.trackers.dvclive_tracker import DvcLiveTracker
from fmstune.trackers.records import MetricPoint, RunStart
from fmstune.trackers.registry import get_tracker
from tests.support.shipping import delivered_by

RUN = Path("dvclive/run")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def delivered(directory: Path, **options: Any) -> Ledger:
    """The ledger after a delivery in this process."""
    return delivered_by(DvcLiveTracker("dvclive", options), directory)


def lines(name: str) -> list[str]:
    """The lines of a metrics file."""
    return (RUN / "plots" / "metrics" / f"{name}.tsv").read_text().splitlines()


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted"])
def test_a_run_is_stored_in_the_form_that_dvclive_users_expect(
    status: Any, recorder: Recorder, run_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder.set_params({"team": "nlp", "a": {"b": 1e-4}}, "params")
    recorder.track_point(MetricPoint({"loss": 2.0}, "train", 5, 0.5))
    recorder.track_point(MetricPoint({"loss": float("nan")}, "train", 10, 1.0))
    recorder.track_point(MetricPoint({"loss": 3.0}, "eval", 10))
    recorder.close(status, "ValueError: no" if status == "failed" else None)
    delivered(run_directory)
    assert lines("loss") == ["step\tloss", "5\t2.0", "10\tnan"]
    assert lines("eval/loss") == ["step\tloss", "10\t3.0"]
    assert lines("epoch") == ["step\tepoch", "5\t0.5", "10\t1.0"]
    metrics = json.loads((RUN / "metrics.json").read_text())
    assert metrics == {
        "loss": "nan", "epoch": 1.0, "eval": {"loss": 3.0}, "step": 10, "status": status,
    } | ({"error": "ValueError: no"} if status == "failed" else {})  # fmt: skip
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("git", [False, True], ids=["", "git"])
def test_dvc_shows_the_run_and_its_repository_stays_unchanged(
    git: bool, recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    from dvc.repo import Repo

    def dvc_init(*options: str) -> None:
        command = [sys.executable, "-m", "dvc", "init", "-q", *options]
        subprocess.run(command, check=True, env=os.environ | {"DVC_NO_ANALYTICS": "true"})

    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    if git:
        subprocess.run(["git", "init", "-q", "."], check=True)
        dvc_init()
        subprocess.run(["git", *identity, "commit", "-qm", "first", "--allow-empty"], check=True)
    else:
        dvc_init("--no-scm")

    def state() -> str:
        asked = ["git", "status", "--porcelain", "--untracked-files=no"], ["git", "for-each-ref"]
        return "".join(subprocess.check_output(each, text=True) for each in asked) if git else ""

    before, files = state(), set((tmp_path / ".dvc").rglob("*"))
    recorder.set_params({"lr": 0.5, "a": {"b": "x"}}, "params")
    for step in (1, 2):
        recorder.track_point(MetricPoint({"loss": 1 / step}, "train", step))
    with active(recorder):
        fmstune.track_image(np.zeros((1, 1, 3), np.uint8), "i", "eval", step=2)
    recorder.close("finished")
    delivered(run_directory)
    assert (state(), set((tmp_path / ".dvc").rglob("*"))) == (before, files)

    with Repo(".") as repo:
        shown = next(iter(repo.metrics.show().values()))["data"]["dvclive/run/metrics.json"]["data"]
        assert (shown["loss"], shown["status"]) == (0.5, "finished")
        params = next(iter(repo.params.show().values()))["data"]["dvclive/run/params.yaml"]["data"]
        assert params == {"params": {"lr": 0.5, "a": {"b": "x"}}}
        plots = next(iter(repo.plots.show().values()))["sources"]["data"]
        assert plots["dvclive/run/plots/metrics/loss.tsv"]["data"] == [
            {"step": "1", "loss": "1.0"}, {"step": "2", "loss": "0.5"},
        ]  # fmt: skip
        assert "dvclive/run/plots/images/eval/i/2.png" in plots


def test_a_resumed_run_replaces_the_steps_that_it_logs_again(recorder: Recorder, run_directory: Path) -> None:
    recorder.set_params({"a": {"x": 1}}, "params")
    for step in (1, 2, 3):
        recorder.track_point(MetricPoint({"loss": float(step)}, "train", step))
    recorder.close("interrupted")
    first = delivered(run_directory)
    recorder.resumed(1)
    recorder.set_params({"a": {"y": 2}}, "params")
    recorder.track_point(MetricPoint({"loss": 0.5}, "train", 2))
    recorder.close("finished")
    assert delivered(run_directory).run_id == first.run_id
    assert lines("loss") == ["step\tloss", "1\t1.0", "2\t0.5"]
    assert "x: 1" in (text := (RUN / "params.yaml").read_text())
    assert "y: 2" in text


def test_another_run_of_the_same_name_gets_its_own_folder_or_replaces_it(run_directory: Path) -> None:
    def run(run_id: str, value: float, **options: Any) -> str | None:
        tracker = get_tracker("dvclive", **options)
        found = tracker.open(RunStart("run", ".", run_id=run_id))
        tracker.seq = 1
        tracker.track(value, "loss", "train", step=1)
        tracker.close("finished")
        return found.id

    assert [run("a", 1.0), run("b", 2.0)] == [str(Path.cwd() / RUN), str(Path.cwd() / "dvclive" / "run-2")]
    assert run("c", 3.0, dir="dvclive/run", replace=True) == str(Path.cwd() / RUN)
    assert lines("loss") == ["step\tloss", "1\t3.0"]
    notes = Path("notes")
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    run("d", 4.0, dir="notes", replace=True)
    assert (notes / "mine.txt").read_text() == "mine"


def test_a_moved_folder_is_found(recorder: Recorder, run_directory: Path, tmp_path: Path) -> None:
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    delivered(run_directory)
    shutil.move("dvclive", "elsewhere")
    recorder.resumed(1)
    recorder.track_point(MetricPoint({"loss": 0.5}, "train", 2))
    recorder.close("finished")
    with pytest.raises(DeliveryFailed):  # its name has changed
        delivered(run_directory, dir="elsewhere/{run}")
    delivered(run_directory, dir="elsewhere/{run}")
    assert (tmp_path / "elsewhere/run/plots/metrics/loss.tsv").read_text().count("\n") == 3
    assert not Path("dvclive").exists()


def test_two_diverging_resumes_of_a_run_are_two_runs(recorder: Recorder, run_directory: Path) -> None:
    recorder.track_point(MetricPoint({"loss": 1.0}, "train", 1))
    recorder.close("interrupted")
    first = delivered(run_directory)

    def resume(run_id: str) -> tuple[str | None, str | None]:
        tracker = get_tracker("dvclive")
        found = tracker.open(RunStart("run", ".", first.run_id, run_id=run_id, after=first.delivered))
        tracker.seq = first.delivered + 1
        tracker.track(0.5, "loss", "train", step=2)
        tracker.close("finished")
        return found.id, found.note

    assert resume("id-2")[0] == first.run_id
    assert lines("loss") == ["step\tloss", "1\t1.0", "2\t0.5"]
    other, noted = resume("id-3")
    assert (other, noted is not None and noted.startswith("a run of its own there")) == (
        f"{first.run_id}-2", True,
    )  # fmt: skip


def test_a_failed_write_leaves_no_partial_event(
    recorder: Recorder, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvclive.plots import Metric

    for step in (1, 2, 3):
        recorder.track_point(MetricPoint({"loss": float(step), "full": 1.0}, "train", step))
    recorder.close("finished")
    dump, left = Metric.dump, [3]

    def fails(self: Any, value: Any, **kwargs: Any) -> None:
        left[0] -= 1
        dump(self, value, **kwargs)
        if not left[0]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Metric, "dump", fails)
    tracker = DvcLiveTracker("dvclive", {})
    with pytest.raises(DeliveryFailed, match="No space left"):
        Delivery(run_directory, tracker, load_ledger(run_directory, "dvclive") or Ledger("dvclive")).run(
            lambda: True
        )
    assert len({path.read_text().count("\n") for path in RUN.rglob("*.tsv")}) <= 1
    delivered(run_directory)
    assert lines("loss") == ["step\tloss", "1\t1.0", "2\t2.0", "3\t3.0"]
    assert lines("full") == ["step\tfull", "1\t1.0", "2\t1.0", "3\t1.0"]


def test_a_metric_called_step_is_renamed(recorder: Recorder, run_directory: Path) -> None:
    recorder.track(0.5, "step", "eval", step=3)
    recorder.close("finished")
    assert "step is called eval/step_" in delivered(run_directory).changes
    assert lines("eval/step_") == ["step\tstep_", "3\t0.5"]


def test_an_image_format_that_dvc_does_not_show_is_converted(
    recorder: Recorder, run_directory: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (2, 2), (255, 0, 0)).save(tmp_path / "i.webp", lossless=True)
    with active(recorder):
        fmstune.track_image(tmp_path / "i.webp", "i", "eval", step=1)
    recorder.close("finished")
    delivered(run_directory)
    with Image.open(RUN / "plots" / "images" / "eval" / "i" / "1.png") as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_standalone_it_needs_no_journal() -> None:
    tracker = get_tracker("dvclive")
    tracker.track(0.5, "f1(macro)", "eval", step=1)
    tracker.set_params({"a": {"b": None}})
    tracker.set_params({"c": 1})
    tracker.open(RunStart("named", "."))
    tracker.track(0.25, "f1(macro)", "eval", step=2)
    tracker.close("finished")
    (run,) = Path("dvclive").iterdir()
    assert run.name == "named"
    assert (run / "plots/metrics/eval/f1(macro).tsv").read_text() == "step\tf1(macro)\n1\t0.5\n2\t0.25\n"
    assert (run / "params.yaml").read_text().split() == ["params:", "a:", "b:", "c:", "1"]


@pytest.mark.parametrize(
    ("folder", "state", "said"),
    [
        ("dvclive/{run}", "ok", "will be created"),
        ("here", "bad_option", "is not a folder"),
        ("/proc/x/{run}", "no_permission", "cannot be written to"),
        ("s3://x/{run}", "bad_option", "not a folder of this machine"),
    ],
)
def test_the_check_distinguishes_causes_and_creates_nothing(
    folder: str, state: str, said: str, tmp_path: Path
) -> None:
    Path("here").touch()
    found = get_tracker("dvclive", dir=folder).check(3.0)
    assert (found.state, said in found.detail) == (state, True), found
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
