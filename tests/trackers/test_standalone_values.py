"""In a script of the user's own, a tracker says what its service cannot take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fmstune import get_tracker
from tests.support.logs import Logs
from tests.support.mlflow_servers import store_in

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
