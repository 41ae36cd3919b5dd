"""A non-finite number is detected at its step, reported with its rows, and kept out of the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fmstune import demo
from fmstune.delivery.journal.reader import JournalReader
from fmstune.errors import RunError
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from tests.support.ranks import run_ranks
from tests.support.tuned import SHORT, tune, weights

pytestmark = pytest.mark.usefixtures("small_demo")

TOO_FAST = ["training.learning_rate=1e38", "training.warmup_steps=0"]
ROWS = 16


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def one_bad_row(monkeypatch: pytest.MonkeyPatch) -> str:
    """A model whose forward pass overflows at one row only.

    A hook stands in for the overflow: no finite float32 weights could be found that overflow at one row.
    """
    lines = demo.data_file("train").read_text().splitlines()[:ROWS]
    rows = [json.loads(line) for line in lines]
    rows[10]["messages"][0]["content"] = "~~~~~~"
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    from transformers import AutoTokenizer

    (bad,) = set(
        AutoTokenizer.from_pretrained(demo.model_dir())("~~~~~~", add_special_tokens=False).input_ids
    )
    build = demo.build_model

    def broken(seed: int = 42, **how: Any) -> Any:
        model = build(seed, **how)

        def overflow(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
            return output.masked_fill((arguments[0] == bad)[..., None], float("inf"))

        model.get_input_embeddings().register_forward_hook(overflow)
        return model

    monkeypatch.setattr(demo, "build_model", broken)
    return "rows.jsonl line 11"


def bad_row(*sets: str) -> list[str]:
    return ["data.train=rows.jsonl", "model.path=demo", "training.eval_strategy=no",
            "training.per_device_train_batch_size=4", f"data.max_rows={ROWS}", *sets]  # fmt: skip


def logged(directory: str, name: str) -> list[float]:
    events = JournalReader(Path(directory, TRACKING_DIR, JOURNAL_NAME))
    return [event.values[name] for event in events if event.kind == "metrics" and name in event.values]


def is_as_drawn(directory: str) -> bool:
    """Whether the trained demo model still has its initial weights."""
    from transformers import AutoModelForCausalLM

    tuned, fresh = AutoModelForCausalLM.from_pretrained(directory), demo.build_model(42)
    pairs = zip(tuned.parameters(), fresh.parameters(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_learning_rate_far_too_high_stops_the_run_at_the_step_that_broke_the_weights() -> None:
    with pytest.raises(RunError, match="at step 2, because the weights are no longer finite") as error:
        tune("out", *TOO_FAST)
    assert "a lower training.learning_rate (it is 1e+38)" in str(error.value)
    assert error.value.exit_code == 1
    assert not list(Path("out").glob("**/*.safetensors"))


def test_broken_weights_are_never_saved_over_good_ones() -> None:
    with pytest.raises(RunError, match=r"no longer finite after step 1 .*are not saved"):
        tune("out", *TOO_FAST, "training.max_steps=1", "training.save_steps=1")
    assert not list(Path("out").glob("**/*.safetensors"))


def test_a_bad_batch_stops_the_run_and_reports_its_step_and_rows(one_bad_row: str) -> None:
    with pytest.raises(RunError, match="the loss is NaN at step") as error:
        tune("out", *bad_row("training.save_steps=1", "training.save_strategy=steps"))
    assert one_bad_row in str(error.value)
    assert 'run.on_nonfinite = "skip"' in str(error.value)
    step = int(str(error.value).split("at step ")[1].split()[0])
    assert Path(f"out/checkpoint-{step - 1}").exists() == (step > 1)


@pytest.mark.parametrize("padding_free", ["true", "false"])
def test_a_skipped_batch_is_counted_and_leaves_no_trace(one_bad_row: str, padding_free: str) -> None:
    shown = tune("out", *bad_row("run.on_nonfinite=skip", f"training.padding_free={padding_free}",
                                 "training.logging_steps=1", "training.max_steps=8"))  # fmt: skip
    assert shown.count("are skipped, and counted") == 1
    assert one_bad_row in shown
    assert logged("out", "skipped_batches")[-1] == 2  # once per epoch of four steps
    assert all(isinstance(value, float) for value in logged("out", "loss"))  # NaN is a string in the journal
    assert all(isinstance(value, float) for value in logged("out", "entropy"))
    assert Path("out/model.safetensors").exists()


def test_a_skipped_step_is_reported_as_skipped_and_has_no_loss(one_bad_row: str) -> None:
    shown = tune("out", *bad_row("run.on_nonfinite=skip", "training.logging_steps=1",
                                 "training.max_steps=4"))  # fmt: skip
    events = list(JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME)))
    points = {event.step: event.values for event in events if "learning_rate" in event.values}
    (skipped,) = [step for step, values in points.items() if "loss" not in values]
    assert f"step     {skipped}/4  skipped" in shown
    assert points[skipped]["skipped_batches"] == 1
    assert points[skipped].keys().isdisjoint({"loss", "grad_norm", "entropy", "mean_token_accuracy"})
    assert len(logged("out", "loss")) == len(logged("out", "grad_norm")) == 3


@pytest.mark.parametrize(
    ("accumulation", "rows"),
    [(1, ROWS), (2, ROWS), (2, 12)],  # with 12 rows the last update of an epoch has only one batch
)
def test_the_logged_loss_is_the_mean_over_the_batches_that_were_trained(
    one_bad_row: str, accumulation: int, rows: int
) -> None:
    accumulating = f"training.gradient_accumulation_steps={accumulation}"
    sets = bad_row("run.on_nonfinite=skip", accumulating, "training.learning_rate=1e-9",
                   "training.max_steps=4", f"data.max_rows={rows}")  # fmt: skip
    tune("each", *sets, "training.logging_steps=1")
    tune("all", *sets, "training.logging_steps=4")
    losses = logged("each", "loss")
    (mean,) = logged("all", "loss")
    assert min(losses) <= mean <= max(losses)
    assert logged("all", "train_loss") == pytest.approx([mean])
    if accumulation == 1:
        assert mean == pytest.approx(sum(losses) / 3)


def test_an_update_of_only_a_skipped_batch_changes_no_weight(one_bad_row: str) -> None:
    every = bad_row("run.on_nonfinite=skip", "training.max_steps=1", "training.weight_decay=0.5",
                    "training.per_device_train_batch_size=16")  # fmt: skip
    tune("out", *every)
    assert is_as_drawn("out")


def test_a_batch_next_to_a_skipped_one_is_trained(one_bad_row: str) -> None:
    tune("out", *bad_row("run.on_nonfinite=skip", "training.gradient_accumulation_steps=4"))
    assert logged("out", "skipped_batches")[-1] == 6
    assert not is_as_drawn("out")


def test_too_many_consecutive_skips_end_the_run(one_bad_row: str) -> None:
    with pytest.raises(RunError, match="as in the 9 batches before it"):
        tune("out", *bad_row("run.on_nonfinite=skip", "training.max_steps=30",
                             "training.per_device_train_batch_size=16"))  # fmt: skip


def test_continuing_is_reported_once() -> None:
    shown = tune("out", *TOO_FAST, "run.on_nonfinite=continue")
    assert shown.count("the run continues, as run.on_nonfinite") == 1
    assert "step     6/6  loss nan" in shown


def test_without_bad_batches_the_setting_changes_no_weight() -> None:
    for setting in ("stop", "skip", "continue"):
        tune(setting, f"run.on_nonfinite={setting}")
    assert weights("stop") == weights("skip") == weights("continue")


def test_two_processes_make_the_same_decision(tmp_path: Path) -> None:
    sets = [part for setting in [*SHORT, *TOO_FAST] for part in ("--set", setting)]
    done, other = run_ranks(2, "train", "--output-dir", "out", *sets, cwd=tmp_path)
    assert (done.returncode, other.returncode) == (1, 1)
    assert "at step 2, because the weights are no longer finite" in done.stderr


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_preference_training_is_watched_as_well(method: str) -> None:
    with pytest.raises(RunError, match=r"at step \d+, because the weights are no longer finite"):
        tune("out", *TOO_FAST, f"run.method={method}")


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_a_bad_batch_of_answers_is_also_reported_with_its_rows(one_bad_row: str, method: str) -> None:
    rows = [json.loads(line)["messages"] for line in Path("rows.jsonl").read_text().splitlines()]
    worse = [{"role": "assistant", "content": "No."}]
    pairs = [{"prompt": row[:-1], "chosen": row[-1:], "rejected": worse} for row in rows]
    Path("rows.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    with pytest.raises(RunError, match="the loss is NaN at step") as error:
        tune("out", *bad_row(f"run.method={method}"))
    assert one_bad_row in str(error.value)


@pytest.mark.parametrize("sets", [[], ["lora.enabled=true"]])
def test_a_model_that_was_broken_before_is_not_blamed_on_the_learning_rate(sets: list[str]) -> None:
    shutil.copytree(demo.model_dir(), "broken")
    model = demo.build_model(1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] = float("nan")
    model.save_pretrained("broken")
    with pytest.raises(RunError, match=r"was loaded with weights that are not finite \(.*up_proj") as error:
        tune("out", "model.path=broken", "data.train=demo", *sets)
    assert "learning_rate" not in str(error.value)
