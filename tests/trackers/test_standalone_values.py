"""In a script of the user's own, a tracker says what its service cannot take."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmstune import get_tracker
from fmstune.trackers.base import Artifact, Media, TrackerError
from fmstune.trackers.built_in import BUILT_IN
from tests.support.end_to_end import Points, aim_points, mlflow_points, tensorboard_points, wandb_points
from tests.support.logs import Logs
from tests.support.mlflow_servers import store_in
from tests.support.user_trainer import TRACKERS

OPTIONS = {
    "mlflow": {"tracking_uri": "sqlite:///{folder}/mlflow.db"},
    "tensorboard": {"dir": "tensorboard"},
    "trackio": {"project": "values"},
    "dvclive": {"dir": "dvclive"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_value_that_is_left_out_is_named_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Logs
) -> None:
    monkeypatch.chdir(tmp_path)
    store_in(tmp_path)
    tracker = get_tracker(name, **{key: text.format(folder=tmp_path) for key, text in OPTIONS[name].items()})
    for step in (1, 2):
        tracker.track(0.5, "loss", "train", step=step)
        tracker.track("a text", "verdict", "train", step=step)
        tracker.track([1.0, 2.0], "spread", "train", step=step)
        tracker.track(float("nan"), "diverged", "train", step=step)  # a number
    tracker.close("finished")
    told = [text for logger, _, text in caplog.record_tuples if logger == "fmstune"]
    assert told == [
        f"{name}: metric {each} is not a number and is left out" for each in ("verdict", "spread")
    ]


HELD = {
    "text": Media("text", "note", text="hello", stage="eval", step=1),
    "image": Media("image", "shown", file=Path("shown.png"), stage="eval", step=1),
    "histogram": Media("histogram", "spread", counts=(1, 2), stage="eval", step=1),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_a_tracker_does_not_store_is_an_error_in_a_script(name: str) -> None:
    tracker = get_tracker(name)
    for kind in HELD.keys() - tracker.media if name != "none" else ():
        with pytest.raises(TrackerError, match=f"^{name} stores no {kind}s$"):
            tracker.track_media(HELD[kind])
    if not tracker.takes_artifacts and name != "none":
        with pytest.raises(TrackerError, match=f"^{name} stores no artifacts$"):
            tracker.track_artifact(Artifact("model", "model", Path("model")))


CHANGED = """
import sys
from fmstune import get_tracker
tracker = get_tracker(sys.argv[1], **{sys.argv[2]: sys.argv[3]})
tracker.set_params({"lr": 0.1})
for step in (2, 1):
    tracker.track(0.5, "loss", "train", step=step)
tracker.set_params({"lr": 0.2})
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mlflow", "mlflow: param params.lr was given another value; the first one is kept"),
        ("tensorboard", "tensorboard: of several values of train/loss at one step, or at an earlier one"),
    ],
)
def test_what_the_tracker_itself_changed_is_reported_when_its_run_ends(
    name: str, said: str, tmp_path: Path
) -> None:
    store_in(tmp_path)
    ((option, value),) = OPTIONS[name].items()
    arguments = [name, option, value.format(folder=tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", CHANGED, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr.count(said) == 1, done.stderr


class Rank(enum.Enum):
    FIRST = 1


def file_points(folder: Path) -> Points:
    rows = map(json.loads, (folder / "m.jsonl").read_text().splitlines())
    metrics = [row for row in rows if row["kind"] == "metrics"]
    return {
        (row["stage"], name, row.get("step") or 0): value
        for row in metrics
        for name, value in row["values"].items()
    }


STORED: dict[str, Callable[[Path], Points]] = {
    "aim": aim_points,
    "wandb": wandb_points,
    "mlflow": lambda folder: mlflow_points(folder / "mlflow.db"),
    "tensorboard": lambda folder: tensorboard_points(folder / "tensorboard"),
    "file": file_points,
}


@pytest.mark.parametrize("name", STORED)
def test_numbers_and_steps_of_any_library_are_tracked_as_such(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = get_tracker(name, **TRACKERS[name].options(tmp_path))
    tracker.step = 7  # of a Trainer that has the tracker's callback
    tracked: list[tuple[Any, Any, Any]] = [
        ("float32", np.float32(0.5), np.int64(1)),
        ("tensor", torch.tensor([2]), torch.tensor(2)),
        ("decimal", Decimal("1.5"), 3.0),
        ("fraction", Fraction(1, 4), True),
        ("enum", Rank.FIRST, np.array([4.0])),
        (5, 3, None),
    ]
    for key, value, step in tracked:
        tracker.track(value, key, "mine", step=step)
    tracker.set_params({1: np.array([0.5]), "rank": Rank.FIRST}, "data")
    tracker.set_params({"beyond": 10**400, "endless": float("inf")}, "more")
    tracker.close("finished")
    values = {("mine", "float32", 1): 0.5, ("mine", "tensor", 2): 2, ("mine", "decimal", 3): 1.5}
    values |= {("mine", "fraction", 1): 0.25, ("mine", "enum", 4): 1, ("mine", "5", 7): 3}
    assert STORED[name](tmp_path) == values
    (run,) = TRACKERS[name].seen(tmp_path)
    assert run.status == "finished"
    assert run.params["data"] == {"1": 0.5, "rank": 1}


NOT_RECORDED = """
import sys, fmstune
if sys.argv[1:]:
    fmstune.get_tracker("file", path="m.jsonl").track(0.5, "loss")
fmstune.track(0.5, "score")
fmstune.set_params({"team": "nlp"})
"""


@pytest.mark.parametrize("arguments", [["with a tracker"], []])
def test_a_script_with_trackers_is_told_once_that_fmstunes_functions_record_nothing_there(
    arguments: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOT_RECORDED, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr.count("record nothing outside a run") == len(arguments)
