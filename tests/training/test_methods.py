"""Each method learns what it should, with the same promises as sft: journal, checkpoints, adapters."""

from __future__ import annotations

import functools
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.delivery.journal.reader import JournalReader
from fmstune.errors import ConfigError, ModelError
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.run.run import RunResult, run
from fmstune.training.trainers import preferences
from tests.support.commands import fmstune
from tests.support.end_to_end import aim_points, journal_points, wandb_points
from tests.support.preferred import PREFERENCES, build, metrics, pairs, tune, write
from tests.support.tracked import rewrite_as_interrupted
from tests.support.tuned import weights

pytestmark = pytest.mark.usefixtures("small_demo")


class Tuned(NamedTuple):
    """A run: its directory, its result, and its console output."""

    out: str
    result: RunResult
    shown: str


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("pairs.jsonl", pairs(32))
    write("eval.jsonl", pairs(8))


@pytest.fixture(scope="module")
def preferred(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tuned]:
    """A run of each method that has learned the preferences; several tests inspect it."""

    @functools.cache
    def of(method: str) -> Tuned:
        folder = tmp_path_factory.mktemp(method)
        train, evaluation = f"{folder}/pairs.jsonl", f"{folder}/eval.jsonl"
        write(train, pairs(32))
        write(evaluation, pairs(8))
        steps = ("training.max_steps=24", "training.num_train_epochs=9")
        out = f"{folder}/out"
        return Tuned(out, *tune(method, out, *steps, data=train, evaluation=evaluation))

    return of


@pytest.mark.parametrize(
    ("method", "loss_below", "accuracy", "margin"),
    [
        ("dpo", 0.4, "rewards/accuracies", "rewards/margins"),
        ("kto", 0.4, None, "rewards/margins"),
        ("reward", 0.4, "accuracy", "margin"),
    ],
)
def test_the_chosen_answers_are_preferred_after_a_few_steps(
    method: str, loss_below: float, accuracy: str | None, margin: str, preferred: Callable[[str], Tuned]
) -> None:
    out, result, shown = preferred(method)
    losses, margins = metrics(out, "train", "loss"), metrics(out, "train", margin)
    assert losses[-1] < loss_below < losses[0] + 0.1
    assert margins[-1] > max(0.5, margins[0])
    assert result.metrics["eval/loss"] < loss_below
    assert metrics(out, "eval", margin)[-1] > 0.5
    last_line = [line for line in shown.splitlines() if line.startswith("step")][-1]
    if accuracy:
        assert metrics(out, "train", accuracy)[-1] == 1
        assert metrics(out, "eval", accuracy)[-1] == 1
        assert "reward accuracy 1  margin" in last_line
        assert f"| eval/{accuracy} | 1 |" in Path(out, "README.md").read_text()
    assert "margin" in last_line
    assert metrics(out, "train", "tokens_per_second")[-1] > 0
    assert method in Path(out, "README.md").read_text()
    events = list(JournalReader(Path(out, TRACKING_DIR, JOURNAL_NAME)))
    assert events[-1].status == "finished"


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_model_trained_on_preferences_loads_as_a_plain_language_model(
    method: str, preferred: Callable[[str], Tuned]
) -> None:
    from transformers import AutoModelForCausalLM

    out = preferred(method).out
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert "pipeline_tag: text-generation" in Path(out, "README.md").read_text()
    before = demo.build_model(42).state_dict()
    assert any(not before[name].equal(value) for name, value in model.state_dict().items())


def test_a_reward_model_is_saved_with_its_head_and_can_be_trained_further(
    preferred: Callable[[str], Tuned],
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = preferred("reward").out
    model, report = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.num_labels == 1
    assert "pipeline_tag: text-classification" in Path(out, "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(out)
    (pair,) = pairs(1)
    texts = [
        tokenizer.apply_chat_template([*pair["prompt"], *pair[key]], return_tensors="pt", return_dict=True)
        for key in ("chosen", "rejected")
    ]
    with torch.no_grad():
        better, worse = (model(**text).logits.item() for text in texts)
    assert better > worse
    again, _ = tune("reward", "again", "training.max_steps=2", f"model.path={out}")
    assert again.metrics["train/accuracy"] == 1


def test_the_head_of_a_reward_model_is_drawn_from_the_seed(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    demo.build_model(1).save_pretrained("language")
    AutoTokenizer.from_pretrained(demo.model_dir()).save_pretrained("language")
    heads = [
        build("reward", "model.path=./language", f"training.seed={seed}").trainer.model.score.weight
        for seed in (1, 1, 2)
    ]
    assert heads[0].equal(heads[1])
    assert not heads[0].equal(heads[2])


def test_a_classifier_with_several_labels_is_no_reward_model() -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(demo.model_dir(), num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained("classes")
    AutoTokenizer.from_pretrained(demo.model_dir()).save_pretrained("classes")
    with pytest.raises(ModelError, match="is a classifier with 3 labels; a reward model has one"):
        build("reward", "model.path=./classes")


@pytest.mark.parametrize("streaming", ["false", "true"])
@pytest.mark.parametrize("method", PREFERENCES)
def test_a_resumed_run_ends_with_bitwise_the_weights_of_an_uninterrupted_one(
    method: str, streaming: str
) -> None:
    steps = ["training.max_steps=4", "training.save_strategy='steps'", "training.save_steps=2"]
    steps.append(f"data.streaming={streaming}")
    tune(method, "whole", *steps)
    shutil.copytree("whole", "parts")
    Path("parts/model.safetensors").unlink()
    shutil.rmtree("parts/checkpoint-4")
    rewrite_as_interrupted(Path("parts"))
    _, shown = tune(method, "parts", *steps, resume="auto")
    assert "resume   from parts/checkpoint-2" in shown
    assert weights("parts") == weights("whole")
    assert not Path("parts/checkpoint-2/README.md").exists()  # TRL's card


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_reference_that_follows_the_model_is_resumed_with_it(method: str) -> None:
    steps = ["training.max_steps=4", "training.save_strategy='steps'", "training.save_steps=2"]
    sets = [*steps, "training.sync_ref_model=true", "training.ref_model_sync_steps=1"]
    tune(method, "whole", *sets)
    for name in ("parts", "old"):
        shutil.copytree("whole", name)
        Path(name, "model.safetensors").unlink()
        shutil.rmtree(f"{name}/checkpoint-4")
        rewrite_as_interrupted(Path(name))
    tune(method, "parts", *sets, resume="auto")
    assert weights("parts") == weights("whole")
    Path("old/checkpoint-2/reference.pt").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint-2 has no reference model, which training.sync_ref"):
        tune(method, "old", *sets, resume="auto")
    assert not Path("whole/reference.pt").exists()


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_an_adapters_reference_is_the_model_without_it_not_a_second_model(method: str) -> None:
    built = build(method, "lora.enabled=true", "lora.r=4")
    assert built.trainer.ref_model is None
    assert 0 < built.trainable < 100_000
    whole = build(method)
    reference = whole.trainer.ref_model
    assert reference is not None
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    begun = demo.build_model(42).state_dict()
    assert all(begun[name].equal(value) for name, value in reference.state_dict().items())


@pytest.mark.parametrize("method", PREFERENCES)
def test_an_adapter_learns_and_loads_onto_its_base_model(method: str) -> None:
    from peft import PeftModel

    sets = ["lora.enabled=true", "lora.r=8", "training.max_steps=12", "training.learning_rate=2e-2"]
    tune(method, "out", *sets)
    assert not Path("out/model.safetensors").exists()
    losses = metrics("out", "train", "loss")
    assert losses[-1] < losses[0]
    base = demo.build_model(reward=method == "reward")
    loaded = PeftModel.from_pretrained(base, "out")
    assert any("lora" in name for name, _ in loaded.named_parameters())


def test_reference_log_probabilities_can_be_precomputed() -> None:
    built = build("dpo", "training.precompute_ref_log_probs=true")
    assert built.trainer.ref_model is None
    assert "ref_chosen_logps" in built.trainer.train_dataset.column_names


@pytest.mark.parametrize("changed", ["training.ld_alpha=0.5", "training.max_length=26"])
def test_stored_log_probabilities_are_not_used_with_other_settings(changed: str) -> None:
    def stored(*sets: str) -> list[float]:
        trainer: Any = build("dpo", "training.precompute_ref_log_probs=true", *sets).trainer
        rows = datasets.load_from_disk("rows")
        return list(trainer._precompute_ref_logps(rows, "train", 4)["ref_rejected_logps"])

    build("dpo").trainer.train_dataset.save_to_disk("rows")
    before = stored()
    assert stored() == before
    assert len(list(Path("rows").glob("cache-*"))) == 1
    assert stored(changed) != before


def test_log_probabilities_are_not_precomputed_at_zero_3(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands in for DeepSpeed, which is not installed for the tests.
    monkeypatch.setattr(preferences, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ConfigError, match="does not work with ZeRO 3") as error:
        build("dpo", "training.precompute_ref_log_probs=true")
    assert error.value.exit_code == 2


def test_a_wrapped_reference_has_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both stand in for DeepSpeed at ZeRO 3, which is not installed for the tests: its engine wraps the
    # reference, and TRL's `create_reference_model` refuses it.
    monkeypatch.setattr("trl.experimental.utils.is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(Accelerator, "prepare_model", lambda self, model, **how: torch.nn.DataParallel(model))
    trainer = build("dpo").trainer
    assert trainer.lm_head == "direct"
    assert not any(weight.requires_grad for weight in trainer.ref_model.parameters())
    assert not trainer.ref_model.module.training


@pytest.mark.parametrize("loss", ["ipo", "hinge", "['sigmoid','sft']"])
def test_the_other_dpo_losses_are_selected_by_name(loss: str) -> None:
    tune("dpo", "out", f"training.loss_type={loss}", "training.max_steps=2")
    assert len(metrics("out", "train", "rewards/margins")) == 1


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_direct_head_on_a_cpu_gives_the_metrics_of_trl(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(method, "direct", "training.max_steps=4")
    monkeypatch.setattr(
        "fmstune.training.trainers.preferences.fit_lm_head", lambda model, direct, experts: "tiled"
    )
    tune(method, "trl", "training.max_steps=4")
    for name in ("loss", "rewards/margins", "logits/chosen", "entropy", "grad_norm"):
        assert metrics("direct", "train", name) == pytest.approx(metrics("trl", "train", name), rel=1e-2)


def test_pairs_weighted_by_wpo_have_the_values_they_need() -> None:
    tune("dpo", "out", "training.use_weighting=true", "training.max_steps=2")
    assert metrics("out", "train", "loss")[-1] > 0


def test_without_data_the_demo_is_trained_as_pairs() -> None:
    flags = [("run.method", "dpo", "--method"), ("training.output_dir", "out", "--output-dir")]
    screen = io.StringIO()
    run(load(None, flags, ["training.max_steps=15"]), RunConsole(Console(file=screen, width=200)))
    assert metrics("out", "eval", "rewards/accuracies")[-1] > 0.9
    assert "demo · 400 rows (chosen/rejected as messages)" in screen.getvalue()


def test_what_trl_refuses_is_reported_as_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"\[training\] is refused by TRL: .*f_divergence_type"):
        build("dpo", "training.f_divergence_type=js_divergence", 'training.loss_type=["apo_zero"]')


def test_trls_message_about_a_setting_is_reported_in_one_sentence() -> None:
    (note,) = build("dpo", "training.padding_free=true").notes
    assert note.startswith("TRL: `padding_free=True` is temporarily unavailable")
    assert note.count(". ") == 0


def test_preference_metrics_reach_every_tracker(tmp_path: Path) -> None:
    sets = ["training.max_steps=2", "trackers.wandb.mode=offline", 'tracking.trackers=["aim", "wandb"]']
    result, _ = tune("dpo", "out", *sets)
    assert [line.state for line in result.delivery] == ["complete", "complete"]
    points = journal_points(tmp_path / "out")
    assert {("train", "rewards/accuracies", 2), ("eval", "rewards/margins", 2)} <= points.keys()
    assert aim_points(tmp_path) == points
    assert wandb_points(tmp_path) == points


def test_the_command_prints_its_own_lines_and_nothing_else() -> None:
    command = ["train", "--model", "demo", "--data", "pairs.jsonl", "--method", "dpo", "--max-steps", "1"]
    steps = ["--output-dir", "out", "--set", "training.logging_steps=1"]
    done = fmstune(*command, *steps, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\n"
    labels = [line[:9].strip() for line in done.stderr.splitlines()]
    summary = ["tuned", "loss", "time", "tokens", "next", "", "report"]
    assert labels == ["model", "data", "run", "step", "memory", "done", "saved", *summary]


def test_a_trl_trainer_is_imported_only_when_it_is_used(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "import fmstune.training.build\n"
        "from fmstune.training.methods.trained import trained_by\n"
        "for method in (None, 'reward', 'dpo', 'kto'):\n"
        "    if method: trained_by(method)\n"
        "    print([m for m in ('dpo', 'kto', 'reward') if f'trl.trainer.{m}_trainer' in sys.modules])\n"
    )
    done = fmstune(cwd=tmp_path, module=str(script))
    assert done.returncode == 0, done.stderr
    lines = ["[]", "['reward']", "['dpo', 'reward']", "['dpo', 'kto', 'reward']"]
    assert done.stdout.splitlines() == lines
