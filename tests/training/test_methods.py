"""Each method learns what it is to learn, with the same promises as sft: journal, checkpoints, adapters."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fmstune import demo
from fmstune.config.load.load import load
from fmstune.console import RunConsole
from fmstune.delivery.journal.reader import JournalReader
from fmstune.errors import ConfigError, DataError, ModelError
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.run.run import RunResult, run
from fmstune.trackers.base import Tracker
from fmstune.training.build import BuiltTrainer, build_trainer
from tests.support.commands import fmstune
from tests.support.end_to_end import aim_points, journal_points, wandb_points
from tests.support.tracked import rewrite_as_interrupted
from tests.support.tuned import weights

PREFERENCES = ("dpo", "kto", "reward", "orpo")
FAST = ["training.logging_steps=2", "training.learning_rate=2e-3", "training.per_device_train_batch_size=4"]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("pairs.jsonl", pairs(32))
    write("eval.jsonl", pairs(8))


def pairs(count: int) -> list[dict[str, Any]]:
    """Prompts whose better answer is always the price, not the greeting."""
    names = ("lamp", "chair", "table", "book", "carpet", "mirror", "kettle", "basket")
    return [
        {
            "prompt": [{"role": "user", "content": f"What does the {names[i % 8]} number {i} cost?"}],
            "chosen": [{"role": "assistant", "content": f"The {names[i % 8]} costs {i} euros."}],
            "rejected": [
                {"role": "assistant", "content": f"Good morning, dear {names[i % 8]}, and well met."}
            ],
        }
        for i in range(count)
    ]


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def tune(
    method: str,
    output: str,
    *sets: str,
    data: str = "pairs.jsonl",
    evaluation: str = "eval.jsonl",
    **how: Any,
) -> tuple[RunResult, str]:
    """A run of the demo model on pairs, in this process; its result and what a person sees of it."""
    flags = [
        ("model.path", "demo", "--model"),
        ("data.train", data, "--data"),
        ("data.eval", evaluation, "--eval-data"),
        ("run.method", method, "--method"),
        ("training.output_dir", output, "--output-dir"),
    ]
    screen = io.StringIO()
    config = load(None, flags, [*FAST, *sets])
    result = run(config, RunConsole(Console(file=screen, width=250)), **how)
    return result, screen.getvalue()


def build(method: str, *sets: str, data: str = "pairs.jsonl") -> BuiltTrainer:
    flags = [("model.path", "demo", "--model"), ("data.train", data, "--data")]
    config = load(None, flags, [f"run.method={method}", *FAST, *sets])
    return build_trainer(config, Tracker(), Path("out"))


def metrics(output: str, stage: str, name: str) -> list[float]:
    events = JournalReader(Path(output, TRACKING_DIR, JOURNAL_NAME))
    return [event.values[name] for event in events if event.stage == stage and name in event.values]


@pytest.mark.parametrize(
    ("method", "loss_below", "accuracy", "margin"),
    [
        ("dpo", 0.4, "rewards/accuracies", "rewards/margins"),
        ("kto", 0.4, None, "rewards/margins"),
        ("reward", 0.4, "accuracy", "margin"),
    ],
)
def test_the_better_answers_are_preferred_after_a_few_steps(
    method: str, loss_below: float, accuracy: str | None, margin: str
) -> None:
    result, shown = tune(method, "out", "training.max_steps=24", "training.num_train_epochs=9")
    losses, margins = metrics("out", "train", "loss"), metrics("out", "train", margin)
    assert losses[-1] < loss_below < losses[0] + 0.1
    assert margins[-1] > max(0.5, margins[0])
    assert result.metrics["eval/loss"] < loss_below
    assert metrics("out", "eval", margin)[-1] > 0.5
    last_line = [line for line in shown.splitlines() if line.startswith("step")][-1]
    if accuracy:
        assert metrics("out", "train", accuracy)[-1] == 1
        assert metrics("out", "eval", accuracy)[-1] == 1
        assert "reward accuracy 1  margin" in last_line
        assert f"| eval/{accuracy} | 1 |" in Path("out/README.md").read_text()
    assert "margin" in last_line
    assert metrics("out", "train", "tokens_per_second")[-1] > 0
    assert method in Path("out/README.md").read_text()
    events = list(JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME)))
    assert events[-1].status == "finished"


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_model_tuned_on_preferences_loads_as_the_language_model_that_it_is(method: str) -> None:
    from transformers import AutoModelForCausalLM

    tune(method, "out", "training.max_steps=2")
    model, report = AutoModelForCausalLM.from_pretrained("out", output_loading_info=True)
    assert not report["missing_keys"]
    assert "pipeline_tag: text-generation" in Path("out/README.md").read_text()
    before = demo.build_model(42).state_dict()
    assert any(not before[name].equal(value) for name, value in model.state_dict().items())


def test_a_reward_model_is_saved_with_its_head_and_gone_on_with() -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tune("reward", "out", "training.max_steps=24", "training.num_train_epochs=9")
    model, report = AutoModelForSequenceClassification.from_pretrained("out", output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.num_labels == 1
    assert "pipeline_tag: text-classification" in Path("out/README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained("out")
    (pair,) = pairs(1)
    texts = [
        tokenizer.apply_chat_template([*pair["prompt"], *pair[key]], return_tensors="pt", return_dict=True)
        for key in ("chosen", "rejected")
    ]
    with torch.no_grad():
        better, worse = (model(**text).logits.item() for text in texts)
    assert better > worse
    again, _ = tune("reward", "again", "training.max_steps=2", "model.path=out")
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
    with pytest.raises(ModelError, match="holds a classifier with 3 labels; a reward model has one"):
        build("reward", "model.path=./classes")


@pytest.mark.parametrize("streaming", ["false", "true"])
@pytest.mark.parametrize("method", PREFERENCES)
def test_a_resumed_run_ends_with_bitwise_the_weights_of_an_unbroken_one(method: str, streaming: str) -> None:
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
def test_an_adapter_is_compared_with_the_model_without_it_and_not_with_a_second_one(method: str) -> None:
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

    sets = ["lora.enabled=true", "lora.r=8", "training.max_steps=24", "training.learning_rate=2e-2"]
    tune(method, "out", *sets)
    assert not Path("out/model.safetensors").exists()
    losses = metrics("out", "train", "loss")
    assert losses[-1] < losses[0]
    base = demo.build_model(reward=method == "reward")
    loaded = PeftModel.from_pretrained(base, "out")
    assert any("lora" in name for name, _ in loaded.named_parameters())


def test_the_log_probabilities_of_the_reference_may_be_computed_beforehand() -> None:
    built = build("dpo", "training.precompute_ref_log_probs=true")
    assert built.trainer.ref_model is None
    assert "ref_chosen_logps" in built.trainer.train_dataset.column_names


@pytest.mark.parametrize("loss", ["ipo", "hinge", "['sigmoid','sft']"])
def test_the_other_losses_of_dpo_are_chosen_by_name(loss: str) -> None:
    tune("dpo", "out", f"training.loss_type={loss}", "training.max_steps=2")
    assert len(metrics("out", "train", "rewards/margins")) == 1


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_direct_head_of_a_cpu_gives_the_numbers_of_trl(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(method, "direct", "training.max_steps=4")
    monkeypatch.setattr(
        "fmstune.training.trainers.preferences.fit_lm_head", lambda model, direct, experts: "tiled"
    )
    tune(method, "trl", "training.max_steps=4")
    for name in ("loss", "rewards/margins", "logits/chosen", "entropy", "grad_norm"):
        assert metrics("direct", "train", name) == pytest.approx(metrics("trl", "train", name), rel=1e-2)


def test_pairs_weighted_by_wpo_have_the_figures_that_they_need() -> None:
    tune("dpo", "out", "training.use_weighting=true", "training.max_steps=2")
    assert metrics("out", "train", "loss")[-1] > 0


def test_kto_learns_from_labelled_answers_in_an_order_of_the_seed() -> None:
    rows = [
        {"prompt": pair["prompt"], "completion": pair[key], "label": key == "chosen"}
        for key in ("chosen", "rejected")
        for pair in pairs(16)
    ]
    write("labelled.jsonl", rows)
    labels = build("kto", data="labelled.jsonl").trainer.train_dataset["label"]
    assert sorted(labels) == [False] * 16 + [True] * 16
    assert set(labels[:8]) == {False, True}
    tune("kto", "out", "training.max_steps=2", data="labelled.jsonl")


def test_without_data_the_demo_is_learnt_as_pairs() -> None:
    flags = [("run.method", "dpo", "--method"), ("training.output_dir", "out", "--output-dir")]
    screen = io.StringIO()
    run(load(None, flags, ["training.max_steps=30"]), RunConsole(Console(file=screen, width=200)))
    assert metrics("out", "eval", "rewards/accuracies")[-1] > 0.9
    assert "demo · 400 rows (chosen/rejected as messages)" in screen.getvalue()


def test_the_rows_and_what_became_of_them_are_told_and_tracked() -> None:
    long = {"prompt": "word " * 60, "chosen": "yes", "rejected": "no"}
    cut = {"prompt": "Say", "chosen": "word " * 60, "rejected": "no"}
    same = {"prompt": "Say", "chosen": "no", "rejected": "no"}
    fine = {"prompt": "Say", "chosen": "yes", "rejected": "no"}
    write("mixed.jsonl", [long, cut, same, fine])
    summary = build("dpo", "training.max_length=30", data="mixed.jsonl").data
    line = summary.line()
    assert "mixed.jsonl · 2 rows (chosen/rejected)" in line
    assert "1 row cut" in line
    assert "1 row left out (too long for training.max_length)" in line
    assert "1 row left out (chosen and rejected are the same)" in line
    params = summary.as_params()
    assert params["longest"] == 30
    assert params["sha256"]
    assert 0 < params["trained_tokens"] < params["tokens"]


@pytest.mark.parametrize("method", PREFERENCES)
def test_rows_that_are_all_too_long_are_told(method: str) -> None:
    with pytest.raises(
        DataError,
        match=r"of its .* rows, none has a token to train on .* training.max_length = 2 tokens; raise",
    ):
        build(method, "training.max_length=2")


@pytest.mark.parametrize("method", PREFERENCES)
def test_a_row_that_the_chat_template_refuses_is_told_with_its_place(method: str) -> None:
    Path("strict.jinja").write_text(
        "{% for m in messages %}{% if 'number 7 ' in m.content %}{{ raise_exception('no sevens') }}"
        "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    with pytest.raises(
        DataError,
        match=r"pairs\.jsonl line 8: the model's chat template refuses this conversation: no sevens",
    ):
        build(method, "model.chat_template=strict.jinja")


def test_a_model_without_a_chat_template_learns_from_texts_alone() -> None:
    from transformers import AutoTokenizer

    demo.build_model(1).save_pretrained("plain")
    tokenizer = AutoTokenizer.from_pretrained(demo.model_dir())
    tokenizer.chat_template = None
    tokenizer.save_pretrained("plain")
    with pytest.raises(DataError, match="holds chats, and the model has no chat template"):
        build("dpo", "model.path=./plain")
    write("texts.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert build("dpo", "model.path=./plain", data="texts.jsonl").data.rows == 1


def test_calls_of_tools_reach_the_template_without_the_empty_fields_of_a_table() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    plain = pairs(2)
    plain[0] = {**plain[0], "chosen": [call], "tools": tools}
    write("tools.jsonl", plain)
    Path("tools.jinja").write_text(
        "{% if tools %}[{{ tools[0].function.name }}]{% endif %}{% for m in messages %}"
        "{% if 'tool_calls' in m %}<{{ m.tool_calls[0].function.name }}>"
        "{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{{ m.content }}\n"
        "{% endfor %}"
    )
    built = build("dpo", "model.chat_template=tools.jinja", data="tools.jsonl")
    rows = [built.trainer.train_dataset[index] for index in range(2)]
    texts = [built.tokenizer.decode(row["prompt_ids"] + row["chosen_ids"]) for row in rows]
    assert texts[0].startswith("[f]What")
    assert "<f>" in texts[0]
    assert "<" not in texts[1].removesuffix("<|im_end|>")


def test_what_trl_refuses_is_told_as_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"\[training\] is refused by TRL: .*f_divergence_type"):
        build("dpo", "training.f_divergence_type=js_divergence", 'training.loss_type=["apo_zero"]')


def test_an_unequal_number_of_labels_is_said_once_with_the_advised_weights() -> None:
    rows = [{"prompt": "a", "completion": f"b{n}", "label": n == 0} for n in range(12)]
    write("unequal.jsonl", rows)
    _, shown = tune("kto", "out", "training.max_steps=1", data="unequal.jsonl", evaluation="")
    (said,) = [line for line in shown.splitlines() if line.startswith("warning")]
    assert "more answers of one label than of the other" in said
    assert "training.desirable_weight within [11, 14.7]" in said
    assert logging.getLogger("trl").propagate


def test_a_prompt_whose_end_is_other_tokens_before_an_answer_is_said() -> None:
    write("merged.jsonl", [{"prompt": "The lamp ", "chosen": "costs 9", "rejected": "is red"}])
    (note,) = build("dpo", data="merged.jsonl").notes
    assert note.startswith("with an answer after it, a prompt ends in other tokens than alone")


def test_what_trl_has_to_say_of_a_setting_is_said_in_one_sentence() -> None:
    (note,) = build("dpo", "training.padding_free=true").notes
    assert note.startswith("TRL: `padding_free=True` is temporarily unavailable")
    assert note.count(". ") == 0


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_samples_are_asked_the_prompts_of_pairs_and_shown_beside_the_better_answer(method: str) -> None:
    sets = [
        "training.max_steps=1",
        "training.eval_strategy=epoch",
        "samples.rows=8",
        "samples.max_new_tokens=4",
    ]
    _, shown = tune(method, "out", *sets)
    assert "sample   user What does the" in shown
    events = JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME))
    (rows,) = [event.rows for event in events if event.kind == "table"]
    answers = [row["expected"] for row in rows if row.get("expected")]
    assert answers
    assert all("euros" in answer for answer in answers)
    assert len(answers) == 8 if method == "dpo" else 0 < len(answers) < 8


def test_the_metrics_of_preferences_reach_every_tracker(tmp_path: Path) -> None:
    sets = ["training.max_steps=2", "trackers.wandb.mode=offline", 'tracking.trackers=["aim", "wandb"]']
    result, _ = tune("dpo", "out", *sets)
    assert [line.state for line in result.delivery] == ["complete", "complete"]
    points = journal_points(tmp_path / "out")
    assert {("train", "rewards/accuracies", 2), ("eval", "rewards/margins", 2)} <= points.keys()
    assert aim_points(tmp_path) == points
    assert wandb_points(tmp_path) == points


@pytest.mark.parametrize("method", PREFERENCES)
def test_no_bar_and_no_warning_is_printed_while_trl_tokenises(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert build(method).notes == ()
    assert capfd.readouterr() == ("", "")


def test_the_command_prints_its_own_lines_and_nothing_else() -> None:
    command = ["train", "--model", "demo", "--data", "pairs.jsonl", "--method", "dpo", "--max-steps", "1"]
    steps = ["--output-dir", "out", "--set", "training.logging_steps=1"]
    done = fmstune(*command, *steps, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    labels = [line[:9].strip() for line in done.stderr.splitlines()]
    assert labels == ["model", "data", "run", "step", "memory", "done", "saved"]


def test_a_trainer_of_trl_is_imported_when_it_is_used() -> None:
    code = (
        "import sys\n"
        "import fmstune.training.build\n"
        "from fmstune.training.methods.trained import trained_by\n"
        "for method in (None, 'reward', 'dpo', 'kto'):\n"
        "    if method: trained_by(method)\n"
        "    print([m for m in ('dpo', 'kto', 'reward') if f'trl.trainer.{m}_trainer' in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = ["[]", "['reward']", "['dpo', 'reward']", "['dpo', 'kto', 'reward']"]
    assert done.stdout.splitlines() == lines
