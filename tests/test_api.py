"""`fmstune.train` does what the command does, and returns how the run ended; user code can hook into it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import EvalPrediction, TrainerCallback

import fmstune
from fmstune.config.load.load import load
from fmstune.delivery.journal.reader import JournalReader
from fmstune.errors import ConfigError, Interrupted, RunError
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from tests.support.commands import fmstune as command
from tests.support.end_to_end import journal_params, journal_points
from tests.support.tuned import weights

DEMO: dict[str, Any] = {
    "model": {"path": "demo"},
    "data": {"train": "demo", "eval": [{"path": "demo", "max_rows": 12}], "max_rows": 24},
    "training.max_steps": 3,
    "training.save_strategy": "no",
    "training.eval_strategy": "steps",
    "training.eval_steps": 3,
}


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Steps(TrainerCallback):
    """Counts the training steps."""

    seen = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        Steps.seen += 1


def exact(prediction: EvalPrediction) -> dict[str, float]:
    labels = prediction.label_ids[:, 1:]
    guessed = (
        prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    )
    right = guessed[:, :-1].argmax(-1) == labels
    return {"exact": float(right[labels != -100].mean())}


def failing(prediction: EvalPrediction) -> dict[str, float]:
    raise ZeroDivisionError("my metric divides by zero")


def test_a_run_from_python_returns_its_directory_metrics_and_delivery(tmp_path: Path) -> None:
    result = fmstune.train(
        settings=DEMO
        | {
            "training.output_dir": "out",
            "tracking": {"trackers": ["file"]},
            "trackers": {"file": {"path": "m.jsonl"}},
            "params": {"team": "nlp", "a key with. dots": 1},
        },
        quiet=True,
    )
    assert result.directory == Path("out")
    assert result.metrics["eval/loss"] == journal_points(Path("out"))["eval", "loss", 3]
    assert [(line.tracker, line.state) for line in result.delivery] == [("file", "complete")]
    assert journal_params(Path("out"))["params"] == {"team": "nlp", "a key with. dots": 1}
    assert Path("m.jsonl").exists()


def test_user_callbacks_and_metrics_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    Steps.seen = 0
    result = fmstune.train(
        settings=DEMO | {"training.output_dir": "out"}, callbacks=[Steps], compute_metrics=exact
    )
    assert Steps.seen == 3
    assert 0 <= result.metrics["eval/exact"] <= 1
    points = journal_points(Path("out"))
    assert points["eval", "exact", 3] == pytest.approx(points["eval", "mean_token_accuracy", 3], abs=0.02)
    assert "3/3" in capsys.readouterr().err


def test_a_notebook_gets_all_lines_in_one_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = type("ZMQInteractiveShell", (), {})  # by which rich recognises a kernel
    monkeypatch.setattr("builtins.get_ipython", shell, raising=False)
    fmstune.train(settings=DEMO | {"training.output_dir": "out"})
    said = capsys.readouterr().err
    order = [said.index(f"\n{label}") for label in ("data ", "run ", "saved", "tuned", "report")]
    assert order == sorted(order)


def test_rows_pass_through_the_users_handler() -> None:
    Path("a.jsonl").write_text('{"q": "1+1?", "a": "2"}\n{"q": "leave me out", "a": "x"}\n')

    def only_sums(row: dict[str, Any]) -> dict[str, Any] | None:
        return {"prompt": row["q"], "completion": row["a"]} if "+" in row["q"] else None

    settings = {"model.path": "demo", "data.train": "a.jsonl", "training.max_steps": 1}
    fmstune.train(settings=settings | {"training.output_dir": "out"}, data_handler=only_sums, quiet=True)
    params = journal_params(Path("out"))
    assert (params["data"]["rows"], params["data"]["shape"]) == (1, "prompt/completion")
    assert params["config"]["data"]["handler"].endswith("only_sums")
    command = 'fmstune.train("config.toml", data_handler=only_sums)'
    assert command in Path("out/README.md").read_text()


def test_a_configuration_can_name_them_by_module_and_name() -> None:
    Steps.seen = 0
    Path("fmstune.toml").write_text(
        '[model]\npath = "demo"\n[data]\ntrain = "demo"\neval = [{path = "demo", max_rows = 12}]\n'
        "max_rows = 24\n[training]\nmax_steps = 2\n"
        '[run]\ncallbacks = ["tests.test_api:Steps"]\ncompute_metrics = "tests.test_api:exact"\n'
    )
    result = fmstune.train(quiet=True)
    assert Steps.seen == 2
    assert "eval/exact" in result.metrics


def test_resume_auto_without_a_directory_resumes_the_newest_unfinished_run() -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        fmstune.train(
            settings=DEMO | {"training.max_steps": 4, "training.save_strategy": "epoch"},
            callbacks=[Stop],
            quiet=True,
        )
    result = fmstune.train(resume="auto", quiet=True)
    assert [result.directory.name] == [run.name for run in Path("runs").iterdir()]
    assert json.loads((result.directory / "checkpoint-4/trainer_state.json").read_text())["global_step"] == 4
    with pytest.raises(ConfigError, match="no unfinished run in runs/"):
        fmstune.train(resume="auto", quiet=True)


def test_exceptions_in_user_code_end_the_run_as_failed() -> None:
    with pytest.raises(ZeroDivisionError, match="my metric"):
        fmstune.train(settings=DEMO | {"training.output_dir": "out"}, compute_metrics=failing, quiet=True)
    *_, last = JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME))
    assert (last.status, last.error) == ("failed", "ZeroDivisionError: my metric divides by zero")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (1, "named returned the name 1; names are strings"),
        ("loss", "named returned the metric 'loss', which is one of the run's own"),
        ("eval_runtime", "give it another name"),
    ],
)
def test_a_metric_whose_name_cannot_be_used_is_refused_with_its_function(name: Any, said: str) -> None:
    def named(prediction: EvalPrediction) -> dict[Any, float]:
        return {name: 2.0}

    with pytest.raises(RunError, match=said):
        fmstune.train(settings=DEMO | {"training.output_dir": "out"}, compute_metrics=named, quiet=True)


def test_a_metric_that_no_checkpoint_can_store_ends_the_run_at_its_first_evaluation() -> None:
    def confusion(prediction: EvalPrediction) -> dict[str, Any]:
        return {"f1": np.float32(0.5), "confusion": np.eye(2)}

    with pytest.raises(RunError, match=r"confusion returned the metric 'confusion' of the type ndarray"):
        fmstune.train(settings=DEMO | {"training.eval_on_start": True}, compute_metrics=confusion, quiet=True)


def test_the_lines_of_evaluations_show_the_computed_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    def scored(prediction: EvalPrediction) -> dict[str, Any]:
        return {"f1": np.array(0.5), "note": "good"}

    result = fmstune.train(settings=DEMO, compute_metrics=scored)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eval     3/3")]
    assert line.endswith("f1 0.5")
    assert result.metrics["eval/f1"] == 0.5


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        ("0", 1, "sys.exit."),
        ("5", 5, "sys.exit with 5."),
        ("'no\\nlicence'", 1, r"sys.exit with 'no\nlicence'."),
    ],
)
def test_code_that_calls_sys_exit_does_not_end_the_command_with_success(
    code: str, ended: int, said: str, tmp_path: Path
) -> None:
    Path("mine.py").write_text(
        "import sys\nfrom transformers import TrainerCallback\n"
        "class Leaves(TrainerCallback):\n    def on_step_end(self, *args, **kwargs):\n"
        f"        sys.exit({code})\n"
    )
    done = command("train", "--max-steps", "2", "--set", 'run.callbacks=["mine:Leaves"]', cwd=tmp_path)
    assert done.returncode == ended, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: code of yours called {said}"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"run.callbacks": ["nowhere:Steps"]}, "the module cannot be imported"),
        ({"run.callbacks": ["tests.test_api:Nothing"]}, "tests.test_api has no Nothing"),
        ({"run.callbacks": ["tests.test_api:exact"]}, "is no transformers.TrainerCallback"),
        ({"run.callbacks": ["tests.test_api"]}, "is not of the form module:name"),
        ({"run.compute_metrics": "tests.test_api:DEMO"}, "is not a function"),
        ({"training.lerning_rate": 1}, "Did you mean training.learning_rate"),
        ({"training": {"max_steps": "ten"}}, "fmstune.train: training.max_steps"),
        ({3: 4}, "is not a key"),
    ],
)
def test_user_errors_are_reported_before_the_model_loads(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fmstune.train(settings={**DEMO, "training.output_dir": "out", **settings}, quiet=True)


def test_no_value_from_python_unsets_what_can_be_unset() -> None:
    Path("own.toml").write_text('[model]\npath = "demo"\n[data]\ntrain = "demo"\nmax_rows = 2\n')
    unset = {"data": {"max_rows": None}, "training.max_length": None, "training.seed": None}
    once = fmstune.train("own.toml", {**unset, "training.max_steps": 1}, quiet=True)
    written = load(once.directory / "config.toml", cwd=Path())
    assert written.training["max_length"] is None
    assert (written.data.max_rows, written.seed) == (None, 42)


def test_what_no_value_from_python_does_not_unset_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.toml").write_text('[model]\npath = "demo"\ntrainable = ["norm"]\n[data]\ntrain = "demo"\n')
    kept = {"model": {"trainable": None}, "training.learning_rate": None, "params.team": None}
    fmstune.train("own.toml", {**kept, "training.max_steps": 1, "data.max_rows": 2})
    warned = [line for line in capsys.readouterr().err.splitlines() if "None does not" in line]
    assert [line.split(maxsplit=1)[1] for line in warned] == [
        "None does not unset model.trainable (own.toml:3): pass another value"
    ]


@pytest.mark.parametrize("key", ["training.lerning_rate", "modle.path", "lerning_rate"])
def test_no_value_for_an_unknown_setting_is_refused_too(key: str) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        fmstune.train(settings={**DEMO, key: None}, quiet=True)


@pytest.mark.parametrize(
    ("settings", "function", "said"),
    [
        ({"run.compute_metrics": "nowhere:score"}, {"compute_metrics": exact}, "run.compute_metrics = "),
        ({"data.handler": "nowhere:clean"}, {"data_handler": print}, "data.handler = "),
        ({"data.handler": "tests.test_api:other"}, {"data_handler": exact}, "data_handler = tests.test"),
    ],
)
def test_two_functions_for_the_same_purpose_are_an_error(
    settings: dict[str, Any], function: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        fmstune.train(settings={**DEMO, "training.output_dir": "out", **settings}, quiet=True, **function)
    assert not Path("out").exists()


def test_the_cause_of_a_failure_is_in_the_termination_log_from_python_too() -> None:
    settings = {**DEMO, "training.output_dir": "out", "run.termination_log": "cause.txt"}
    with pytest.raises(ZeroDivisionError):
        fmstune.train(settings=settings, compute_metrics=failing, quiet=True)
    said = Path("cause.txt").read_text()
    assert said == "ZeroDivisionError: my metric divides by zero\nexit code 1\n"
    with pytest.raises(ConfigError):  # before a run exists
        fmstune.train(settings=settings, quiet=True)
    assert Path("cause.txt").read_text().endswith("or replace it with --overwrite.\nexit code 2\n")
    with pytest.raises(ConfigError):  # and for an invalid configuration
        fmstune.train(settings={"run": {"termination_log": "wrong.txt"}, "model.pat": "demo"}, quiet=True)
    assert "Did you mean model.path" in Path("wrong.txt").read_text()


def test_the_run_equals_that_of_the_command(tmp_path: Path) -> None:
    fmstune.train(settings=DEMO | {"training.output_dir": "out"}, quiet=True)
    done = command("train", "out/config.toml", "--output-dir", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert weights("out") == weights("again")


def test_trackers_and_functions_can_be_modules_of_the_current_directory(tmp_path: Path) -> None:
    Path("mine.py").write_text(
        "from fmstune import Tracker\n"
        "class Mine(Tracker):\n"
        "    def track(self, metric, name, stage=None, *, step=None):\n"
        "        print(name, file=open('tracked.txt', 'a'))\n"
    )
    script = Path(sys.executable).with_name("fmstune")  # unlike `python -m`, it does not search here
    done = command("train", "--max-steps", "2", "--tracker", "mine:Mine", cwd=tmp_path, module=str(script))
    assert done.returncode == 0, done.stderr
    assert "train_runtime" in Path("tracked.txt").read_text()


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_with_a_tracker_of_its_own_trains_once_or_says_what_it_lacks(
    guarded: bool, tmp_path: Path
) -> None:
    settings = DEMO | {"training.max_steps": 1, "tracking.trackers": ["script:Mine"]}
    Path("script.py").write_text(
        "import fmstune\n"
        "class Mine(fmstune.Tracker):\n"
        "    def track(self, metric, name, stage=None, *, step=None):\n"
        "        print(name, file=open('tracked.txt', 'a'))\n"
        + ("if __name__ == '__main__':\n    " if guarded else "")
        + f"fmstune.train(settings={settings!r}, quiet=True)\n"
    )
    done = command(cwd=tmp_path, module=str(Path("script.py").resolve()))
    assert (done.returncode == 0) == guarded
    assert Path("tracked.txt").exists() == guarded
    assert len(list(Path("runs").glob("*"))) == guarded
    if not guarded:
        assert "call it below `if __name__ == '__main__':`" in done.stderr


def test_a_process_that_the_training_spawns_does_not_train_again(tmp_path: Path) -> None:
    Path("script.py").write_text(
        "import multiprocessing, fmstune\n"
        "from transformers import TrainerCallback\n"
        "class Spawns(TrainerCallback):\n"
        "    def on_train_begin(self, *args, **kwargs):\n"
        "        child = multiprocessing.get_context('spawn').Process(target=print)\n"
        "        child.start()\n"
        "        child.join()\n"
        "        assert child.exitcode == 1\n"
        f"fmstune.train(settings={DEMO | {'training.max_steps': 1}!r}, callbacks=[Spawns], quiet=True)\n"
    )
    done = command(cwd=tmp_path, module=str(Path("script.py").resolve()), fresh=True)
    assert done.returncode == 0, done.stderr
    assert len(list(Path("runs").iterdir())) == 1
    assert "while a spawned process imported the script" in done.stderr


def test_a_directory_that_was_deleted_is_named_before_anything_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="the current directory no longer exists; change to another one"):
        fmstune.train(settings=DEMO | {"training.output_dir": str(tmp_path / "out")}, quiet=True)
    assert not (tmp_path / "out").exists()
