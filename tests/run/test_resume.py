"""A run resumes from a checkpoint that fits, and trains no more steps than an uninterrupted one."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli
from transformers import TrainerCallback

from fmstune.config.inspect.dump import to_toml
from fmstune.config.load.load import load
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import ConfigError
from fmstune.run.resume import changed_settings
from fmstune.training.extensions import Extensions
from tests.support.end_to_end import journal_params
from tests.support.journals import events
from tests.support.tracked import tune
from tests.support.tuned import weights


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("best", ["false", "true"])
def test_a_run_killed_before_its_model_was_saved_only_saves_it(best: str) -> None:
    sets = [f"training.load_best_model_at_end={best}", "training.learning_rate=0.05"]
    tune("whole", *sets)
    shutil.copytree("whole", "killed")
    for file in Path("killed").glob("*.safetensors"):
        file.unlink()
    journal = Path("killed/tracking/journal.jsonl")
    *events, _ = journal.read_text().splitlines(keepends=True)  # without the status, as after a kill
    journal.write_text("".join(events))
    _, shown = tune("killed", *sets, resume="auto")
    assert "resume   step 12 was the last; only saving the model is left" in shown
    assert "done     0 steps in 0.0 s" in shown
    assert weights("killed") == weights("whole")


@pytest.mark.parametrize(
    "sets",
    [
        ["training.packing=true", "training.packing_strategy=bfd_split", "training.max_length=16"],
        ["training.packing=true", "training.max_length=256"],
        ["training.dataloader_drop_last=true"],
    ],
)
def test_a_run_of_whole_epochs_is_resumed_to_its_last_step(sets: list[str]) -> None:
    """Packing makes more or fewer rows than the data has, and an incomplete last batch may be dropped."""
    Path("a.jsonl").write_text("".join(json.dumps({"text": f"{n} {'red ' * 30}"}) + "\n" for n in range(9)))
    sets = ["model.path=demo", "data.train=a.jsonl", "training.max_steps=-1", "training.save_steps=1", *sets]
    sets += ["training.per_device_train_batch_size=2", "training.save_strategy=steps", "data.max_rows=9"]
    tune("whole", *sets)
    state = json.loads(max(Path("whole").glob("checkpoint-*/trainer_state.json")).read_text())
    steps = state["global_step"]
    assert journal_params(Path("whole"))["decided"]["max_steps"] == state["max_steps"] == steps
    for resumed, left in (("middle", steps - 1), ("end", steps)):
        shutil.copytree("whole", resumed)
        shutil.rmtree(f"{resumed}/tracking")
        _, shown = tune(f"{resumed}/out", *sets, resume=f"{resumed}/checkpoint-{left}")
        assert (f"step {steps} was the last" in shown) == (left == steps)
        assert weights(f"{resumed}/out") == weights("whole")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((2, 1), "step 1 was at epoch 0.333, and is at 0.167 now; the rows between are learnt again"),
        ((8, 1), "step 1 was at epoch 0.333, and is at 0.5 now; the rows between are left out"),
        ((1, 1), "step 1 was at epoch 0.333, and is at 0.0833 now; the rows between are learnt again"),
        ((4, 1), ""),
        ((2, 2), ""),
        ((1, 4), ""),
    ],
)
def test_a_resume_with_other_batches_says_what_becomes_of_the_rows(sizes: tuple[int, int], said: str) -> None:
    Path("a.jsonl").write_text("".join(json.dumps({"text": f"{n} red"}) + "\n" for n in range(12)))
    sets = ["model.path=demo", "data.train=a.jsonl", "data.max_rows=12", "training.max_steps=-1"]
    sets += ["training.num_train_epochs=1", "training.save_steps=1", "training.save_strategy=steps"]
    sets.append("training.save_total_limit=3")
    each = "training.per_device_train_batch_size={}", "training.gradient_accumulation_steps={}"
    tune("out", *sets, each[0].format(4))
    new = [setting.format(size) for setting, size in zip(each, sizes, strict=True)]
    _, shown = tune("again", *sets, *new, resume="out/checkpoint-1")
    assert ("a step has another number of rows than before" in shown) == bool(said)
    assert said in shown


@pytest.mark.parametrize("older", [False, True])
def test_the_count_of_seen_tokens_continues_after_a_resume(
    older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time=time.time, perf_counter=itertools.count().__next__)
    monkeypatch.setattr("fmstune.trackers.hf.callback.time", clock)

    def metrics(run: str, name: str) -> list[float]:
        found = (event.values for event in events(Path(run)) if event.kind == "metrics")
        return [values[name] for values in found if name in values]

    def seen(run: str) -> list[int]:
        state = json.loads(Path(run, "checkpoint-4/trainer_state.json").read_text())
        return [entry["num_tokens"] for entry in state["log_history"] if "num_tokens" in entry]

    sets = ["training.max_steps=4", "training.save_steps=2", "training.eval_strategy=no"]
    tune("whole", *sets)
    shutil.copytree("whole", "stopped")
    shutil.rmtree("stopped/checkpoint-4")
    if older:  # a checkpoint of a fmstune that did not store it
        path = Path("stopped/checkpoint-2/trainer_state.json")
        state = json.loads(path.read_text())
        del state["stateful_callbacks"]["TokensSeen"]
        path.write_text(json.dumps(state))
    tune("stopped", *sets, resume="stopped/checkpoint-2")
    assert seen("stopped") == seen("whole")
    assert len(seen("whole")) == 2
    speeds = metrics("stopped", "tokens_per_second")[-1:]  # tokens per step, by the clock above
    assert speeds == metrics("whole", "tokens_per_second")[-1:]


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (["lora.enabled=true"], [], "from a run that trains a LoRA adapter (--lora), not all weights"),
        ([], ["lora.enabled=true"], "from a run that trains all weights, not a LoRA adapter (--lora)"),
        (["lora.enabled=true"], ["lora.enabled=true", "lora.r=4"], "lora.r = 16, this run 4"),
        ([], ["training.optim=sgd"], "state is that of adamw_torch, and does not fit training.optim = 'sgd'"),
        (["lora.enabled=true"], ["prompt_tuning.enabled=true"], "not a tuned prompt"),
        (
            ["lora.enabled=true"],
            ["lora.enabled=true", "lora.dora=true"],
            "lora.dora = false, and its state",
        ),
        (
            ["lora.enabled=true"],
            ["lora.enabled=true", "lora.alpha=320"],
            "lora.alpha = 32, and its state does not fit 320",
        ),
        (
            ["lora.enabled=true"],
            ["lora.enabled=true", "lora.target_modules=q_proj"],
            "lora.target_modules = 'all-linear', and its state does not fit 'q_proj'",
        ),
        (
            ["prompt_tuning.enabled=true"],
            ["prompt_tuning.enabled=true", "prompt_tuning.tokens=5"],
            "prompt_tuning.tokens = 20",
        ),
        (
            [],
            ["training.lr_scheduler_type=reduce_lr_on_plateau", "training.eval_strategy=epoch"],
            "lr_scheduler_type = 'cosine', and its state does not fit 'reduce_lr_on_plateau'",
        ),
        (
            ["run.method=dpo"],
            [],
            "--method dpo, but this one uses sft; to start from its weights, use --model",
        ),
    ],
)
def test_an_incompatible_checkpoint_is_refused_with_one_sentence(
    before: list[str], now: list[str], said: str
) -> None:
    short = ["training.max_steps=1", "training.save_steps=1", "training.eval_strategy=no"]
    tune("first", *short, *before)
    with pytest.raises(ConfigError) as error:
        tune("second", *short, "training.max_steps=2", *now, resume="first/checkpoint-1")
    assert said in str(error.value)
    assert not Path("second").exists()


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["model.trainable=['mlp', 'norm']"], ["model.trainable=['norm', 'mlp']"]),
        (
            ["lora.enabled=true", "lora.target_modules=['v_proj', 'q_proj']"],
            ["lora.enabled=true", "lora.target_modules='q_proj, v_proj'"],
        ),
        (
            ["lora.enabled=true", "lora.modules_to_save=['norm', 'embed_tokens']"],
            ["lora.enabled=true", "lora.modules_to_save=['embed_tokens', 'norm']"],
        ),
    ],
)
def test_names_of_weights_may_come_in_another_order(before: list[str], now: list[str]) -> None:
    short = ["training.max_steps=2", "training.save_steps=1", "training.eval_strategy=no"]
    tune("first", *short, *before)
    tune("second", *short, *now, resume="first/checkpoint-1")
    assert weights("second") == weights("first")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            "metric_for_best_model=eval/math_mean_token_accuracy",
            "that of the smallest math_loss, which another",
        ),
        ("metric_for_best_model=loss", "training.metric_for_best_model would compare"),
        ("greater_is_better=true", "training.greater_is_better would compare"),
        ("metric_for_best_model=eval_math_loss", None),
        ("greater_is_better=false", None),
    ],
)
def test_a_best_value_is_only_compared_with_those_of_the_same_metric(now: str, said: str | None) -> None:
    sets = [
        "model.path=demo",
        "data.train=demo",
        "training.eval_strategy=steps",
        "data.eval={name='math', path='demo', max_rows=4}",
        "training.eval_steps=1",
        "training.save_steps=1",
        "training.load_best_model_at_end=true",
        "training.metric_for_best_model=eval/math_loss",
    ]
    tune("first", *sets, "training.max_steps=1")
    again = [*sets, "training.max_steps=2", f"training.{now}"]
    if said is None:
        tune("second", *again, resume="first/checkpoint-1")
        return
    with pytest.raises(ConfigError, match=said):
        tune("second", *again, resume="first/checkpoint-1")


def test_settings_that_changed_since_the_run_started_are_reported(tmp_path: Path) -> None:
    def config(*sets: str) -> RunConfig:
        return load(None, [], ["training.max_steps=2", "model.revision=abc", *sets])

    (tmp_path / "config.toml").write_text(to_toml(config()))
    assert changed_settings(tmp_path, config()) == ""
    assert changed_settings(tmp_path, config("model.revision=def", "tracking.close_timeout=9")) == ""
    said = changed_settings(tmp_path, config("training.max_steps=4", "lora.enabled=true", "run.method=dpo"))
    assert said.startswith("lora.enabled (false → true), run.method ('sft' → 'dpo'), ")
    assert "training.max_steps (2 → 4)" in said
    said = changed_settings(tmp_path, config("tracking.trackers=['file']"))
    assert said == "tracking.trackers (with 'file')"
    (tmp_path / "config.toml").write_text(to_toml(config("tracking.trackers=['file', 'aim']")))
    assert changed_settings(tmp_path, config("tracking.trackers=['aim', 'file']")) == ""
    assert changed_settings(tmp_path / "nowhere", config()) == ""
    sources = "[{path = 'demo', weight = 3.0, revision = 'abc'}, {path = 'demo', max_rows = 9, weight = 1.0}]"
    mixed = (f"data.train={sources}", "model.path=demo")
    (tmp_path / "config.toml").write_text(to_toml(config(*mixed)))
    assert changed_settings(tmp_path, config(mixed[0].replace("abc", "def"), mixed[1])) == ""
    said = changed_settings(tmp_path, config(mixed[0].replace("3.0", "2.0"), mixed[1]))
    assert said.startswith("data.train (with {'path': 'demo', ")
    many = [f"owner/{name * 60}" for name in "abcd"]
    (tmp_path / "config.toml").write_text(to_toml(config(f"data.train={many}", "model.path=demo")))
    said = changed_settings(tmp_path, config(f"data.train={[*many[:2], many[3]]}", "model.path=demo"))
    assert said.startswith("data.train (without 'owner/ccc")
    said = changed_settings(tmp_path, config(f"data.train={many[::-1]}", "model.path=demo"))
    assert said == "data.train (in another order)"


def test_settings_that_a_checkpoint_overrides_are_reported_and_recorded_as_they_apply() -> None:
    class Sees(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            group, schedule = kwargs["optimizer"].param_groups[0], kwargs["lr_scheduler"]
            self.seen = (schedule.base_lrs[0], group["weight_decay"], group["betas"], group["eps"])

    short = ["training.max_steps=2", "training.save_steps=1", "training.eval_strategy=no"]
    before = ["training.learning_rate=0.004", "training.weight_decay=0.1", "training.adam_beta1=0.8"]
    now = ["training.learning_rate=0.05", "training.weight_decay=0.2", "training.adam_beta1=0.7"]
    tune("first", *short, *before)
    sees = Sees()
    more = [*short, *now, "training.adam_epsilon=0.001", "training.max_steps=3"]
    _, shown = tune("second", *more, resume="first/checkpoint-1", extensions=Extensions((sees,)))
    assert sees.seen == (0.004, 0.1, (0.8, 0.999), 1e-8)
    assert "warning  changed since the run was started: training.max_steps (2 → 3)\n" in shown
    held = " ".join(shown.split()).partition("not applied, since the checkpoint determines the value: ")[2]
    for said in ("learning_rate (0.004 → 0.05)", "weight_decay (0.1 → 0.2)", "adam_beta1 (0.8 → 0.7)"):
        assert said in held
    recorded = tomli.loads(Path("second/config.toml").read_text())["training"]
    assert (recorded["learning_rate"], recorded["weight_decay"], recorded["max_steps"]) == (0.004, 0.1, 3)
    assert "adam_epsilon" not in recorded
    again = [*short, *before, "training.max_steps=4"]
    assert "learning_rate" not in tune("third", *again, resume="second/checkpoint-3")[1]


def test_a_precision_that_is_decided_otherwise_on_resuming_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = ["training.save_steps=1", "training.eval_strategy=no"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    tune("first", *short, "training.max_steps=1")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    _, shown = tune("first", *short, "training.max_steps=2", resume="first/checkpoint-1")
    said = "decided otherwise than when the run was started: training.bf16 (true → false; it stays with --set"
    assert said in " ".join(shown.split())
    _, shown = tune("first", *short, "training.max_steps=3", resume="first/checkpoint-2")
    assert "decided otherwise" not in shown
