"""FSDP trains, saves and resumes like a run whose model is not sharded: in two processes, on CPUs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.errors import ConfigError
from fmstune.run.resume import require_fitting
from tests.support.commands import fmstune
from tests.support.end_to_end import journal_points
from tests.support.fsdp_on_cpu import train_sharded
from tests.support.preferred import pairs
from tests.support.tracked import rewrite_as_interrupted
from tests.support.tuned import weights

SETTINGS = (
    "training.max_steps=4", "training.logging_steps=1", "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=2", "data.max_rows=32", "training.warmup_steps=0",
)  # fmt: skip
CHECKPOINTS = (
    "training.eval_steps=2", "training.save_steps=2", "training.save_total_limit=2",
    "training.load_best_model_at_end=true",
)  # fmt: skip
NO_CHECKPOINTS = ('training.eval_strategy="no"', 'training.save_strategy="no"')
SHARDED_STATE = 'training.fsdp_config={state_dict_type="SHARDED_STATE_DICT"}'


def arguments(output: str, *more: str, settings: Iterable[str] = ()) -> list[str]:
    sets = [part for each in (*SETTINGS, *settings) for part in ("--set", each)]
    return ["--nproc", "2", "--output-dir", output, *sets, *more]


def demo_with_checkpoints(output: str, *settings: str) -> list[str]:
    return arguments(output, "--model", "demo", "--data", "demo", settings=[*CHECKPOINTS, *settings])


def interrupt(run: Path) -> None:
    """As if it had been killed after the checkpoint of step 2."""
    next(run.glob("*.safetensors")).unlink()
    shutil.rmtree(run / "checkpoint-4")
    rewrite_as_interrupted(run)


def assert_same(sharded: Path, plain: Path) -> None:
    """The same losses and gradient norms, and the same weights, each stored once."""
    assert journal_points(sharded).keys() == journal_points(plain).keys()
    for point, value in journal_points(plain).items():
        if point[1] in ("loss", "grad_norm"):
            assert journal_points(sharded)[point] == pytest.approx(value, rel=1e-4), point
    mine, theirs = (load_file(next(each.glob("*.safetensors"))) for each in (sharded, plain))
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=2e-4, msg=name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs with evaluations and checkpoints: `plain`, and `whole` with FSDP."""
    folder = tmp_path_factory.mktemp("fsdp")
    plain = fmstune("train", *demo_with_checkpoints("plain"), cwd=folder)
    assert plain.returncode == 0, plain.stderr
    whole = train_sharded(folder, *demo_with_checkpoints("whole"))
    assert whole.returncode == 0, whole.stderr
    assert "warning" not in whole.stderr
    return folder


def test_a_sharded_run_has_the_losses_and_weights_of_a_plain_one(runs: Path) -> None:
    assert_same(runs / "whole", runs / "plain")


@pytest.mark.parametrize("state", [(), (SHARDED_STATE,)], ids=["full", "sharded"])
def test_a_checkpoint_is_resumed_with_the_same_result(state: tuple[str, ...], runs: Path) -> None:
    output = "resumed-full"
    if state:  # with shards, the ranks did not agree on the best checkpoint, and waited for each other
        output = "resumed-sharded"
        done = train_sharded(runs, *demo_with_checkpoints(output, *state))
        assert done.returncode == 0, done.stderr
        assert weights(runs / output) == weights(runs / "whole")
    else:
        shutil.copytree(runs / "whole", runs / output)
    interrupt(runs / output)
    done = train_sharded(runs, *demo_with_checkpoints(output, *state), "--resume")
    assert done.returncode == 0, done.stderr
    assert f"resume   from {output}/checkpoint-2" in done.stderr
    assert "changed since" not in done.stderr
    assert weights(runs / output) == weights(runs / "whole")


@pytest.mark.parametrize(
    ("run", "sets", "message"),
    [
        ("whole", [], "it was written with training.fsdp: set it, or start from its weights with --model "),
        ("plain", ["training.fsdp=true"], "it was written without training.fsdp: leave it out, or start "),
        (
            "whole", ["training.fsdp=true", SHARDED_STATE],
            'it was written with training.fsdp_config.state_dict_type = "FULL_STATE_DICT": set it, or start ',
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_divided_in_another_way_is_refused(
    run: str, sets: list[str], message: str, runs: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        require_fitting(runs / run / "checkpoint-2", load(None, sets=sets, cwd=runs))


def test_a_checkpoint_of_deepspeed_is_refused_without_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2/global_step2").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"it was written with training\.deepspeed: set it, or start from "):
        require_fitting(tmp_path / "checkpoint-2", load(None, cwd=tmp_path))


def test_a_trained_head_beside_adapters_gets_the_gradient_of_all_processes(tmp_path: Path) -> None:
    # Below adapters, accelerate shards the head as a unit of its own, and TRL only reads its weights.
    config = AutoConfig.from_pretrained(demo.model_dir(), tie_word_embeddings=False)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(demo.model_dir()).save_pretrained(tmp_path / "untied")
    head = ["--lora", "--model", "untied", "--data", "demo"]
    settings = ('lora.modules_to_save=["lm_head"]', 'training.eval_strategy="no"', "training.save_steps=2")
    plain = fmstune("train", *arguments("plain", *head, settings=settings), cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    again = arguments("sharded", *head, settings=[*settings, SHARDED_STATE])
    sharded = train_sharded(tmp_path, *again)
    assert sharded.returncode == 0, sharded.stderr
    assert_same(tmp_path / "sharded", tmp_path / "plain")
    # Its checkpoints, of shards alone, do not say that they are those of an adapter.
    before = weights(tmp_path / "sharded")
    interrupt(tmp_path / "sharded")
    resumed = train_sharded(tmp_path, *again, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "sharded") == before


def test_dpo_shards_the_model_and_its_reference(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(16)))
    dpo = ["--method", "dpo", "--model", "demo", "--data", "pairs.jsonl"]
    plain = fmstune("train", *arguments("plain", *dpo, settings=NO_CHECKPOINTS), cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    sharded = train_sharded(tmp_path, *arguments("sharded", *dpo, "--rehearse", settings=NO_CHECKPOINTS))
    assert sharded.returncode == 0, sharded.stderr
    assert "no rehearsal: with FSDP" in sharded.stderr
    assert_same(tmp_path / "sharded", tmp_path / "plain")
