"""The best eval decides which weights are kept, and when training stops early."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.errors import ConfigError
from fmstune.run.run import run
from fmstune.training.extensions import Extensions
from tests.support.architectures import save_tiny
from tests.support.end_to_end import journal_points
from tests.support.tracked import rewrite_as_interrupted
from tests.support.tuned import weights

pytestmark = pytest.mark.usefixtures("small_demo")

# A learning rate at which the demo model first improves, and then gets worse.
SETS = ["training.eval_steps=2", "training.max_steps=40", "training.lr_scheduler_type=constant",
        "training.learning_rate=0.3", "training.warmup_steps=0", "model.path=demo", "data.train=demo",
        'data.eval=[{path="demo", max_rows=8}]']  # fmt: skip
PATIENT = "run.early_stopping_patience=2"


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tune(output: str, *sets: str, **how: Any) -> str:
    config = load(None, [("training.output_dir", output, "--output-dir")], [*SETS, *sets])
    screen = io.StringIO()
    run(config, RunConsole(Console(file=screen, width=200)), **how)
    return screen.getvalue()


def evaluations(output: str) -> dict[int, float]:
    points = journal_points(Path(output))
    return {step: value for (stage, name, step), value in points.items() if (stage, name) == ("eval", "loss")}


@pytest.fixture(scope="module")
def whole(small_demo: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The directory of a run that stops early, and its output."""
    output = str(tmp_path_factory.mktemp("whole") / "out")
    return output, tune(output, PATIENT)


def test_training_stops_when_evals_stop_improving_and_keeps_the_best_weights(whole: tuple[str, str]) -> None:
    output, shown = whole
    losses = evaluations(output)
    best = min(losses, key=losses.__getitem__)
    assert max(losses) == best + 4 < 40
    assert f"stopped  early, at step {best + 4} of 40: no improvement in 2 evaluations" in shown
    assert f"best     eval loss {losses[best]:.4g} at step {best}; kept" in shown
    assert weights(output) == weights(f"{output}/checkpoint-{best}")


def test_the_best_experts_of_a_mixture_are_kept() -> None:
    save_tiny("mixtral", Path("model"))
    few = ["training.max_steps=12", "training.learning_rate=0.5", 'data.train=[{path="demo", max_rows=8}]']
    tune("out", "model.path=model", *few, PATIENT)
    losses = evaluations("out")
    best = min(losses, key=losses.__getitem__)
    assert best < max(losses)
    assert weights("out") == weights(f"out/checkpoint-{best}")


def test_an_eval_counts_as_better_only_by_the_threshold() -> None:
    tune("out", PATIENT, "run.early_stopping_threshold=10")
    assert max(evaluations("out")) == 6  # the first eval, and two more


def test_a_resumed_run_stops_where_an_uninterrupted_one_does(whole: tuple[str, str]) -> None:
    output, _ = whole
    end = max(evaluations(output))
    tune("part", PATIENT, f"training.max_steps={end - 2}")
    tune("rest", PATIENT, resume=f"part/checkpoint-{end - 2}")
    assert max(evaluations("rest")) == end
    assert weights("rest") == weights(output)


def test_a_run_killed_after_it_stopped_early_only_saves_its_model(whole: tuple[str, str]) -> None:
    output, _ = whole
    shutil.copytree(output, "killed")
    next(Path("killed").glob("*.safetensors")).unlink()
    rewrite_as_interrupted(Path("killed"))
    shown = tune("killed", PATIENT, resume="auto")
    end = max(evaluations(output))
    assert f"resume   the run had stopped early at step {end}; only saving the model is left" in shown
    assert max(evaluations("killed")) == end
    assert weights("killed") == weights(output)


@pytest.mark.parametrize("name", ["eval/mean_token_accuracy", "eval_mean_token_accuracy"])
def test_the_metric_that_decides_has_its_name_in_lists_of_runs_or_that_of_transformers(name: str) -> None:
    shown = tune("out", PATIENT, "training.max_steps=4", f"training.metric_for_best_model={name}")
    assert "best     eval mean_token_accuracy " in shown


def exact(prediction: Any) -> dict[str, float]:
    return {"exact": 0.5}


def test_a_metric_that_no_evaluation_has_ends_the_run_with_those_that_it_has() -> None:
    chosen = (PATIENT, "training.metric_for_best_model=accuracy")
    with pytest.raises(ConfigError, match=r"they have .*, loss, .*mean_token_accuracy\. Compute it with"):
        tune("before", *chosen)
    assert not evaluations("before")
    with pytest.raises(ConfigError, match=r"they have entropy, exact, loss, "):
        tune("computed", *chosen, extensions=Extensions(compute_metrics=exact))
    assert list(evaluations("computed")) == [2]


def test_each_eval_gets_a_checkpoint_when_the_best_is_kept() -> None:
    config = load(None, [], ["training.load_best_model_at_end=true", "training.eval_steps=3"])
    assert (config.training["save_strategy"], config.training["save_steps"]) == ("steps", 3)
    Path("a.txt").write_text("a text")
    own = ["model.path=demo", "data.train=a.txt", "data.eval_fraction=0.1"]
    config = load(None, [], ["run.early_stopping_patience=1", *own])
    assert config.training["save_strategy"] == "epoch"


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["run.early_stopping_patience=0"], "out of range"),
        (["run.early_stopping_patience=2", "training.eval_strategy=no"], "needs evaluations"),
        (
            ["run.early_stopping_patience=2", "training.load_best_model_at_end=false"],
            "leave out training.load_best",
        ),
    ],
)
def test_incompatible_settings_are_refused(sets: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(None, [], sets)
