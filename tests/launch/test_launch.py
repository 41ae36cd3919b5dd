"""Several processes: started with one flag, stopped with one signal, and the last line names the cause."""

from __future__ import annotations

import json
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from fmstune import train
from fmstune.demo import data_file
from fmstune.errors import ConfigError
from fmstune.launch import termination_log as termination
from fmstune.launch.local import launch, process_count, without_nproc
from fmstune.launch.rank import LAUNCHED
from tests.support.commands import fmstune, start
from tests.support.end_to_end import journal_points
from tests.support.journals import events, last_step
from tests.support.ranks import TWO
from tests.support.waiting import wait_for


def losses(directory: Path) -> list[float]:
    points = journal_points(directory)
    return [value for (stage, name, _), value in sorted(points.items()) if (stage, name) == ("train", "loss")]


def test_two_processes_give_the_losses_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    # Each row has a different weight in the loss, so that averaging per process would give a different loss.
    rows = [json.loads(line) for line in data_file("train").read_text(encoding="utf-8").splitlines()]
    weighted = [row | {"weight": 1 / (1 + number)} for number, row in enumerate(rows)]
    data = tmp_path / "weighted.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in weighted), encoding="utf-8")
    # Of 13 rows, the second batch of an epoch has five: the processes pad it with rows that do not count.
    batches = ["--max-steps", "4", "--batch-size", "4", "--set", "data.max_rows=13"]
    batches += ["--model", "demo", "--data", str(data)]
    done = fmstune("train", *TWO, *batches, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step     4/4") == 1
    alone = {
        "training.output_dir": str(tmp_path / "one"),
        "training.max_steps": 4,
        "model.path": "demo",
        "data.train": str(data),
        "data.max_rows": 13,
        "training.per_device_train_batch_size": 8,
        "training.eval_strategy": "no",
        "training.logging_steps": 1,
    }
    train(settings=alone, quiet=True)
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert len(losses(tmp_path / "out")) == 4


def test_a_signal_to_the_launcher_saves_one_checkpoint_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "out"
    trainer = start("train", *TWO, "--max-steps", "400", "--set", "training.save_strategy=no", cwd=tmp_path)
    wait_for(lambda: last_step(out) >= 3)
    trainer.terminate()
    _, shown = trainer.communicate()
    assert trainer.returncode == 143, shown
    assert shown.splitlines()[-1] == "error: interrupted by SIGTERM."
    (checkpoint,) = out.glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{last_step(out)}"
    assert events(out)[-1].status == "interrupted"
    left = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True, check=False).stdout
    assert left == ""


def test_a_user_error_is_reported_once_before_any_process_starts(tmp_path: Path) -> None:
    done = fmstune("train", *TWO, "--set", "training.lerning_rate=1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: --set: there is no setting training.lerning_rate. Did you mean training.learning_rate?\n"
    )


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", ""])
def test_an_invalid_number_of_processes_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="neither a number of processes nor `auto`"):
        process_count(asked)


def test_the_flag_is_refused_when_torchrun_started_fmstune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="leave it out if torchrun starts fmstune"):
        process_count("2")


def test_too_few_gpus_are_reported_before_any_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no GPU where the tests run: only their number is faked.
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name in ("OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", LAUNCHED):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PET_SIGNALS_TO_HANDLE", "")
    with pytest.raises(
        ConfigError,
        match=r"--nproc 3: each process needs its own GPU, but there are only 2; use --nproc auto",
    ):
        launch(3, ["train"])


@pytest.mark.parametrize(
    ("name", "value", "standalone"),
    [("PET_NNODES", "1", True), ("PET_NNODES", "2", False), ("PET_MASTER_PORT", "29600", False)],
)
def test_parallel_runs_on_one_machine_never_share_a_port(
    name: str, value: str, standalone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The installed torchrun does this by default, older ones on request: check what is requested.
    asked: list[Namespace] = []
    monkeypatch.setattr("torch.distributed.run.run", asked.append)
    for variable in ("OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", LAUNCHED):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("PET_SIGNALS_TO_HANDLE", "")
    monkeypatch.setenv(name, value)
    launch(1, ["train"], on_cpu=True)
    assert asked[0].standalone is standalone


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("PET_NNODES", "two", "'two'"), ("PET_NODE_RANK", "x", "invalid int"), ("PET_RDZV_BACKEND", "y", "'y'")],
)
def test_invalid_torchrun_variables_are_refused(name: str, value: str, said: str, tmp_path: Path) -> None:
    done = fmstune("train", *TWO, cwd=tmp_path, **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith("error: torchrun rejects the PET_… variables in the environment: ")
    assert said in done.stderr.splitlines()[-1]


def test_each_process_gets_the_command_line_without_the_flag() -> None:
    given = ["train", "--nproc", "2", "--lora", "--nproc=4", "--set", "a=--nproc"]
    assert without_nproc(given) == ["train", "--lora", "--set", "a=--nproc"]


class TestTheTerminationLog:
    def test_it_holds_the_cause_of_an_invalid_command_line(self, tmp_path: Path) -> None:
        done = fmstune("train", "--set", "run.termination_log=why", "--max-stepps", "3", cwd=tmp_path)
        assert done.returncode == 2
        cause = done.stderr.removeprefix("error: ").strip()
        assert (tmp_path / "why").read_text() == f"{cause}\nexit code 2\n"

    def test_it_holds_the_location_of_an_invalid_configuration(self, tmp_path: Path) -> None:
        text = '[model]\npath = "demo"\n[data]\ntrain = "demo"\n[run]\ntermination_log = "why"\n'
        (tmp_path / "fmstune.toml").write_text(text + "[training]\nlerning_rate = 1\n")
        assert fmstune("train", cwd=tmp_path).returncode == 2
        assert (tmp_path / "why").read_text().startswith("fmstune.toml:8: there is no setting")

    def test_it_is_no_longer_than_kubernetes_reads(self, tmp_path: Path) -> None:
        log = tmp_path / "why"
        termination.write("ä" * 5000, 1, [f"--set=run.termination_log={log}"])
        assert len(log.read_bytes()) == termination.MOST_BYTES
        assert log.read_bytes().endswith(b"\nexit code 1\n")

    def test_if_it_cannot_be_written_a_warning_precedes_the_cause(self, tmp_path: Path) -> None:
        done = fmstune("train", "--set", "run.termination_log=no/such/why", "--nproc", "x", cwd=tmp_path)
        warning, cause = done.stderr.splitlines()
        assert warning.startswith("warning  run.termination_log = no/such/why cannot be written")
        assert cause.startswith("error: --nproc x")

    def test_secrets_are_hidden_in_it(self, tmp_path: Path) -> None:
        done = fmstune(
            "train", "--data", "https://me:hunter2@host/x.jsonl", "--model", "demo",
            "--set", "run.termination_log=why", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 2
        assert "hunter2" not in (tmp_path / "why").read_text() + done.stderr
