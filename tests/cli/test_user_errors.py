"""The real command with user errors: one short line, exit code 2, at once, and nothing is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.made_runs import make_run
from tests.support.unprivileged import unprivileged
from tests.support.user_errors import error_line, fmstune


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("train --tracker wandbb", "--tracker: there is no tracker 'wandbb'. Did you mean wandb?"),
        (
            "train --tracker qqqq",
            "Available: none, aim, wandb, mlflow, tensorboard, trackio, dvclive, swanlab, comet, clearml, "
            "file",
        ),
        ("train --tracker aim --tracker aim", "given twice"),
        (
            "train --learning-rate abc",
            "--learning-rate: training.learning_rate = 'abc' is a string; it takes a",
        ),
        ("train --max-steps 1e3", "it takes an integer. Write 1000."),
        ("train --epochs -1", "training.num_train_epochs = -1 is out of range"),
        ("train --model=", "no model is given: use --model"),
        ("train --set training.lr=3", "Did you mean training.learning_rate?"),
        ("train --set epochs=3", "Did you mean training.num_train_epochs?"),
        ("train --set training.report_to=wandb", "choose trackers with --tracker"),
        ("train --set training.seed=1.5", "--set: training.seed = 1.5 is a number; it takes an integer."),
        ("train --set seed", "--set 'seed' is not of the form KEY=VALUE, such as"),
        ("train --set lora.r=0", "lora.r = 0 is out of range; it must be at least 1."),
        ("train --set training.save_strategy=epochs", "Did you mean epoch?"),
        ("train --set trackers.wandb.tags=a", "it takes a list of strings"),
        ("train --param team", "--param 'team' is not of the form NAME=VALUE, such as"),
        ("train --params-file p.yaml", "use a .json or .toml file"),
        ("train --params-file p.json", "there is no file p.json"),
        ("train --model demo", "no data is given: use --data"),
        ("train --data demo", "no model is given: use --model"),
        ("train --model demo --data train.jsonl", "there is no such file"),
        ("train --model ./nope --data demo", "there is no such directory"),
        ("train --model demo --data *.parquet", "no file matches it"),
        ("train --template {question", "double the braces of the text"),
        ("train --set data.columns.promt=q", "Did you mean prompt?"),
        ("train --set data.streaming=true --epochs 1", "needs a number of steps"),
        ("train --set model.chat_template=chatlm", "Did you mean chatml?"),
        ("train --batch-size 0", "is out of range; it must be at least 1"),
        ("train --max-steps 0", "more than 0, or -1 for whole epochs"),
        ("train --learning-rate nan", "is not a finite number"),
        ("train --epochs many", "--epochs"),
        ("train fmstun.toml", "there is no file fmstun.toml"),
        ("train --trackr aim", "--tracker"),
        ("train --max-step 3", "--max-steps"),
        ("train --set", "'--set' requires an argument"),
        ("trian", "Did you mean 'train'?"),
        ("trackers lst", "Did you mean 'list'?"),
        ("trackers check wanb", "Did you mean wandb?"),
        ("sft c.yaml", "no such command: sft. Did you mean train? (see `fmstune --help`)"),
        ("dpo", "no such command: dpo. Did you mean train --method dpo? (see `fmstune --help`)"),
        ("preprocess c.yaml", "no such command: preprocess. Did you mean data? (see `fmstune --help`)"),
        ("eval runs/a", "no such command: eval. Did you mean evaluate?"),
        ("runs tail runs/a", "no such command: tail. Did you mean watch? (see `fmstune runs --help`)"),
        ("merge a --output-dir b", "no such option: --output-dir. It is an argument: fmstune merge OUT (see"),
        ("generate --run a --prompt b", "--run. It is an argument: fmstune generate RUN_OR_MODEL (see"),
        ("data --data a.jsonl", "no such option: --data. It is an argument: fmstune data DATA (see"),
        ("train --config a.toml", "--config. It is an argument: fmstune train CONFIG.toml (see"),
        ("trackers check --tracker aim", "It is an argument: fmstune trackers check NAME (see"),
        ("generate a --max-tokens 3", "no such option: --max-tokens. Did you mean --max-new-tokens? (see"),
        ("runs export a --format csv", "no such option: --format. Did you mean --to? (see"),
        ("train -o runs/a", "no such option: -o. Did you mean --output-dir? (see"),
        ("train --params team=nlp", "no such option: --params. Did you mean --param? (see"),
        ("train a.toml epochs=1", "unexpected argument: epochs=1. Settings are given as --set epochs=1 (see"),
        ("init a.jsonl", "unexpected argument: a.jsonl. Did you mean --data a.jsonl? (see"),
        ("train epochs=1", "there is no file epochs=1. Settings are given as --set epochs=1"),
        (
            "train --tracker aim,file",
            "there is no tracker 'aim,file'. Give several trackers as a list, or with several --tracker.",
        ),
        (
            "train --data a.jsonl,b.jsonl --model demo",
            "no such file. Give several sources as a list, or with several --data.",
        ),
    ],
)
def test_a_user_error_is_reported_in_one_line(here: Path, arguments: str, says: str) -> None:
    assert says in error_line(here, *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--model empty --data good.jsonl", "holds no model: there is no config.json in it"),
        ("--model demo --data bad.jsonl", "bad.jsonl line 1: "),
        ("--model demo --data good.jsonl --eval-data bad.jsonl", "bad.jsonl line 1: "),
        ("--model demo --data good.jsonl --method dpo", "good.jsonl line 1: "),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_errors_in_the_first_row_or_the_model_directory_are_reported_before_torch_is_imported(
    here: Path, arguments: str, says: str, more: list[str]
) -> None:
    (here / "empty").mkdir()
    (here / "bad.jsonl").write_text('{"messages": 5}\n')
    (here / "good.jsonl").write_text('{"text": "a word"}\n')
    assert says in error_line(here, "train", *arguments.split(), *more)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[trainng]\nseed = 1",
            "fmstune.toml:1: there is no table or setting trainng. Did you mean [training]?",
        ),
        ("[model]\npath = demo", 'fmstune.toml:2: invalid TOML: Invalid value. Did you mean "demo"?'),
        ("[training]\nseed = 1", "`path` under [model] in fmstune.toml"),
        ('[training]\n"\\u001b[31m\\n" = 1', "there is no setting"),
    ],
)
def test_an_error_in_the_file_is_reported_with_its_location(here: Path, text: str, says: str) -> None:
    (here / "fmstune.toml").write_text(text)
    assert says in error_line(here, "train")


def test_invalid_utf8_is_reported(here: Path) -> None:
    assert "is not UTF-8 text" in error_line(here, "train", "--param", os.fsdecode(b"team=\xe9"))


def test_a_traceback_is_shown_only_on_request(here: Path) -> None:
    done = fmstune(here, "train", "--debug", "--set", "lr=3")
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("Did you mean training.learning_rate?")


def test_trackers_list_compiles_no_patterns_of_secrets() -> None:
    code = """
import sys
from fmstune.cli.main import main
sys.argv = ["fmstune", "trackers", "list"]
try:
    main()
except SystemExit:
    print("fmstune.secrets.forms" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "train --help", "trackers list", "trackers --help"]
)
def test_commands_without_a_model_import_nothing_heavy(here: Path, arguments: str) -> None:
    done = fmstune(here, *arguments.split())
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "IMPORTED" not in done.stderr
    assert not list(here.iterdir())


def test_the_import_guard_detects_heavy_imports(here: Path) -> None:
    code = "import sys; sys.modules['torch'] = sys"
    environment = {**os.environ, "PYTHONPATH": str(here.parent / "guard")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "IMPORTED torch" in done.stderr


def test_a_current_directory_that_was_removed_is_reported(here: Path) -> None:
    gone = here / "gone"
    gone.mkdir()
    code = (
        f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n"
        "from fmstune.cli.main import main; main(['runs', 'list'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the current directory no longer exists; change to another one.\n"


def test_python_without_docstrings_is_refused(here: Path) -> None:
    done = fmstune(here, "data", light=False, PYTHONOPTIMIZE="2", fresh=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Python runs without docstrings (PYTHONOPTIMIZE = 2 or -OO)")


@pytest.mark.parametrize(
    "arguments",
    [
        "runs show LONG", "runs list LONG", "runs export LONG --output x.csv", "runs import LONG",
        "trackers sync LONG", "train --model ./LONG --data demo", "generate LONG --prompt x",
        "merge LONG out", "config diff LONG",
        "train --model demo --data demo --output-dir LONG", "train --model demo --data demo --resume LONG",
    ],
)  # fmt: skip
def test_a_name_that_is_too_long_for_a_file_is_reported(here: Path, arguments: str) -> None:
    line = error_line(here, *arguments.replace("LONG", "a" * 300).split())
    assert "cannot be used: File name too long." in line


@pytest.mark.parametrize("arguments", ["train --tracker", "trackers check", "trackers sync run --to"])
def test_a_tracker_whose_name_is_too_long_for_a_file_is_refused(here: Path, arguments: str) -> None:
    line = error_line(here, *arguments.split(), f"{'/folder' * 30}/mine.py:Mine")
    assert "is too long. Name it as module:Class" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("runs show closed/run", "closed/run cannot be used: Permission denied. `chmod u+rwx closed` gives"),
        (
            "train --resume",
            "runs/, where runs/other cannot be read: Permission denied. `chmod u+rwx runs/other`",
        ),
        ("runs show unreadable", "unreadable/tracking/journal.jsonl cannot be read: Permission denied."),
        ("trackers sync closed/run", "closed/run/tracking/journal.jsonl cannot be used: Permission denied."),
        ("train --data closed --model demo", "the directory closed cannot be read: Permission denied."),
        ("train --data demo --model ./closed", "closed/adapter_config.json cannot be used: Permission"),
        ("train --output-dir closed/run", "training.output_dir = 'closed/run': closed is not writable"),
    ],
)
def test_permissions_are_reported_with_the_path(here: Path, arguments: str, says: str) -> None:
    (here / "closed" / "run" / "tracking").mkdir(parents=True)
    (here / "unreadable" / "tracking").mkdir(parents=True)
    (here / "runs" / "other" / "tracking").mkdir(parents=True)
    for folder in ("closed", "unreadable/tracking", "runs/other"):
        (here / folder).chmod(0)
    code = f"from fmstune.cli.main import main; main({arguments.split()!r})"
    done = unprivileged(code, here)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]


def test_a_run_that_may_not_be_read_does_not_hide_the_others(here: Path) -> None:
    for name in ("one", "other"):
        make_run(here / "runs" / name)
    (here / "runs" / "other" / "tracking").chmod(0)
    (here / "runs" / "closed").mkdir(0)
    done = unprivileged("from fmstune.cli.main import main; main(['runs', 'list'])", here)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    assert listed == {"run": "status", "runs/one": "finished", "runs/other": "unreadable"}
    assert done.stderr == (
        "runs/closed: this directory cannot be read: Permission denied. "
        "`chmod u+rwx runs/closed` gives you access\n"
    )


@pytest.mark.parametrize("closed", ["checkpoint-5", "tracking/inner", "."])
def test_a_run_that_cannot_be_removed_whole_is_left_whole(here: Path, closed: str) -> None:
    run = make_run(here / "run")
    for name in ("model.safetensors", "checkpoint-5/optimizer.pt", "tracking/inner/x"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    before = set(run.rglob("*"))
    (run / closed).chmod(0o555)
    done = unprivileged("from fmstune.cli.main import main; main(['runs', 'rm', 'run', '--yes'])", here)
    assert done.returncode == 1
    path = "run" if closed == "." else f"run/{closed}"
    assert done.stderr.splitlines()[-1] == (
        f"error: run cannot be removed: Permission denied. `chmod u+rwx {path}` gives you access."
    )
    assert set(run.rglob("*")) == before


def test_a_run_whose_directory_cannot_be_removed_is_deleted_but_for_that(here: Path) -> None:
    run = make_run(here / "mounts" / "run")
    run.parent.chmod(0o555)
    code = "from fmstune.cli.main import main; main(['runs', 'rm', 'mounts/run', '--yes'])"
    done = unprivileged(code, here)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "deleted  mounts/run, except its directory, which is empty"
    assert not list(run.iterdir())
