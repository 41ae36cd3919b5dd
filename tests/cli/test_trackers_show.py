"""`fmstune trackers show`: what a tracker's class declares, its current options, and its check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmstune.cli.tracker_show import Present, present
from fmstune.trackers.base import Tracker
from fmstune.trackers.described import described
from fmstune.trackers.registry import BUILT_IN, tracker_class
from tests.support.commands import fmstune


def test_it_shows_options_with_their_current_values_and_the_check(tmp_path: Path) -> None:
    (tmp_path / "fmstune.toml").write_text('[trackers.file]\npath = "/proc/x.jsonl"\n')
    done = fmstune("trackers", "show", "file", cwd=tmp_path, light=True)
    assert done.returncode == 0, done.stderr
    assert "file: every event as JSON lines or CSV, in a file of yours\n" in done.stdout
    assert "tables: as tables" in done.stdout
    assert "duplicates: none" in done.stdout
    assert "Default: metrics-{run}.jsonl." in done.stdout
    assert "now: '/proc/x.jsonl', from fmstune.toml:2\n" in done.stdout
    assert "resume   continues the run there; repeated steps are kept as well\n" in done.stdout
    assert "no permission: /proc cannot be written to" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["fmstune.toml"]


def test_the_json_output_has_the_same_content(tmp_path: Path) -> None:
    given = ("--set", "trackers.file.path=m.jsonl")
    done = fmstune("trackers", "show", "file", "--json", *given, cwd=tmp_path, light=True)
    found = json.loads(done.stdout)
    (option,) = found["options"]
    assert (option["name"], option["default"], option["value"]) == ("path", "metrics-{run}.jsonl", "m.jsonl")
    assert option["origin"] == "--set"
    assert found["keeps"]["metrics"] == "numbers and texts"
    assert found["limits"] == {"text_metrics": True}
    assert found["check"]["state"] == "ok"


class Old:
    """A tracker with the interface of the design note: it declares nothing."""

    def __init__(self, name: str | None = None, tracker_config: object = None) -> None: ...

    def track(self, metric: object, name: str, stage: str | None = None) -> None: ...


class Mine(Tracker):
    """A minimal tracker, as in the README."""

    registered_name = "mine"


@pytest.mark.parametrize("tracker", [Old, Mine])
def test_a_tracker_that_declares_nothing_has_the_defaults_of_the_interface(tracker: type) -> None:
    about = described("mine", tracker)
    wanted = {"metrics": "numbers", "params": "nested", "tables": "as params"}
    assert about.keeps == {**wanted, "media": "no", "artifacts": "no"}
    assert (about.options, about.package, about.install, about.limits) == (None, None, None, {})
    assert about.delivers["duplicates"] == "possible after a kill"


def test_each_built_in_names_what_installs_it_and_has_help_for_each_option() -> None:
    for name in BUILT_IN:
        about = described(name, tracker_class(name))
        assert about.description
        assert bool(about.package) == bool(about.install)
        assert all(option.help for option in about.options or ())


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_option_names_the_source_of_its_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configured values override the vendor's variables, in the order in which the help lists them."""
    about = described(name, tracker_class(name))
    for option in about.options or ():
        for variable in option.variables:
            monkeypatch.delenv(variable, raising=False)
        assert present(about, {}, {})[option.name] == Present(option.default, "default")
        for variable in reversed(option.variables):
            monkeypatch.setenv(variable, f"by {variable}")
            found = present(about, {}, {})[option.name]
            assert found == Present(f"by {variable}", f"the variable {variable}")
        given = present(about, {option.name: "x"}, {option.name: "--set"})[option.name]
        assert given == Present("x", "--set")


def test_the_variables_of_an_option_are_those_in_its_help() -> None:
    found = {
        f"{name}.{option.name}": option.variables
        for name in ("aim", "mlflow", "wandb", "tensorboard")
        for option in described(name, tracker_class(name)).options or ()
        if option.variables
    }
    assert found == {
        "mlflow.tracking_uri": ("MLFLOW_TRACKING_URI",),
        "mlflow.experiment": ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
        "wandb.mode": ("WANDB_MODE",), "wandb.project": ("WANDB_PROJECT",), "wandb.dir": ("WANDB_DIR",),
        "wandb.entity": ("WANDB_ENTITY",), "wandb.name": ("WANDB_NAME",), "wandb.tags": ("WANDB_TAGS",),
        "wandb.group": ("WANDB_RUN_GROUP",), "wandb.notes": ("WANDB_NOTES",),
        "tensorboard.dir": ("TENSORBOARD_LOGGING_DIR",),
    }  # fmt: skip


_SOUND = """
import subprocess, sys
from dataclasses import dataclass, field
from fmstune import Tracker
print("hello")
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)  # left by a plug-in"])
@dataclass
class Options:
    path: str = field(default="x", metadata={"help": "The file, else MINE_PATH."})
    also: tuple = ()
class Mine(Tracker):
    Config = Options
    description = "mine"
    def track(self, metric, name, stage=None, *, step=None): ...
"""


def test_a_plug_in_that_prints_and_starts_processes_is_described(tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text(_SOUND)
    done = fmstune("trackers", "show", "plug:Mine", "--json", cwd=tmp_path, light=True, MINE_PATH="y")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["description"], found["check"]["state"]) == ("mine", "ok")
    assert [(each["name"], each["value"], each["origin"]) for each in found["options"]] == [
        ("path", "y", "the variable MINE_PATH"), ("also", [], "default"),
    ]  # fmt: skip
    text = fmstune("trackers", "show", "plug:Mine", cwd=tmp_path, light=True).stdout
    assert "  path           The file, else MINE_PATH. Default: x.\n" in text
    assert "  also           \n" in text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import time; time.sleep(3600)", "the import of plug took longer than 1 s. Fix the module"),
        ("import os; os._exit(0)", "the import of plug ended the process (exit code 0)"),
        ("import os; os.abort()", "the import of plug ended the process (SIGABRT)"),
        ("raise SystemExit('bye')", "cannot be loaded from plug:Mine: SystemExit: bye"),
        ("Mine = 1", "plug:Mine is not a class with a method `track`"),
        ("import fmstune; fmstune.train()", "fmstune.train was called while the module was imported"),
    ],
)  # fmt: skip
def test_a_plug_in_whose_import_fails_is_named(source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text(source + "\n")
    seconds = "1" if "longer" in said else "60"
    done = fmstune(
        "trackers", "show", "plug:Mine", "--timeout", seconds, cwd=tmp_path, light=True, timeout=60
    )
    assert done.returncode == 3, done.stdout
    assert said in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_what_an_sdk_warns_of_at_import_is_no_error_because_the_shell_makes_warnings_errors(
    tmp_path: Path,
) -> None:
    done = fmstune("trackers", "check", "aim", cwd=tmp_path, light=True, PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stdout
