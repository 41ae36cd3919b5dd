"""How a run spends its time is recorded as it happens, and so is its training speed."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, TrainerCallback

import fmstune
from fmstune.resources.phases import PHASES, STEP
from fmstune.training.trainers.timed import TimedTraining
from tests.support.commands import FAST
from tests.support.commands import fmstune as fmstune_command
from tests.support.journals import events
from tests.support.tuned import tune

NAP = 0.05
STARTUP = [f"startup_{part}_seconds" for part in ("imports", "model", "data", "trainer")]


def system(directory: str | Path) -> list[dict[str, float]]:
    """The recorded times and speeds."""
    found = [event.values for event in events(Path(directory)) if event.stage == "system"]
    return [dict(values) for values in found if "memory_percent" not in values]


def sums(directory: str | Path) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for values in system(directory):
        for phase in PHASES:
            found[phase] += values.get(f"{phase}_seconds", 0.0)
    return found


def learnt(directory: str | Path, what: str) -> float:
    """The total of something trained, from its speed in each interval and the seconds of that interval."""
    return sum(
        values[f"{what}_per_second"] * sum(values[f"{phase}_seconds"] for phase in STEP)
        for values in system(directory)
        if f"{what}_per_second" in values
    )


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Sleeps(TrainerCallback):
    """Sleeps once per step in each phase that a callback can reach, and measures the training time."""

    def __init__(self) -> None:
        self.naps: dict[str, int] = defaultdict(int)
        self.seconds = 0.0

    def nap(self, phase: str) -> None:
        self.naps[phase] += 1
        time.sleep(NAP)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seconds = -time.perf_counter()
        model.register_forward_pre_hook(lambda module, _: self.nap("forward") if module.training else None)
        model.get_input_embeddings().register_full_backward_hook(lambda *_: self.nap("backward"))

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.nap("other")

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.nap("optimizer")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.nap("logging")

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.nap("evaluation")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter()


def test_each_phase_gets_the_time_spent_in_it() -> None:
    callback = Sleeps()

    def handler(row: dict[str, Any]) -> dict[str, Any]:
        callback.nap("data")
        return row

    Path("rows.txt").write_text("".join(f"the dog number {number} barks\n" for number in range(6)))
    settings = {
        "model.path": "demo", "data.train": "rows.txt", "data.eval": "rows.txt", "data.streaming": True,
        "data.shuffle_buffer": 1, "training.output_dir": "out", "training.max_steps": 3,
        "training.logging_steps": 1, "training.eval_strategy": "steps", "training.eval_steps": 3,
        "training.save_steps": 3, "training.per_device_train_batch_size": 2,
    }  # fmt: skip
    before = callback.naps["data"]
    fmstune.train(settings=settings, callbacks=[callback], data_handler=handler, quiet=True)
    found = sums("out")
    # The handler also sleeps before the training: rows are checked, and those of evals are prepared.
    assert before == 0
    assert found["data"] >= 6 * NAP
    assert found["checkpoint"] > 0
    for phase in ("forward", "backward", "optimizer", "logging", "evaluation", "other"):
        assert callback.naps[phase] >= 1
        assert found[phase] >= callback.naps[phase] * NAP, phase
    assert sum(found.values()) == pytest.approx(callback.seconds, rel=0.05)


def test_the_time_to_the_first_step_is_split() -> None:
    tune("out", "training.max_steps=1")
    (start,) = [values for values in system("out") if "startup_seconds" in values]
    assert list(start) == [*STARTUP, "startup_seconds"]
    assert sum(start[part] for part in STARTUP) == pytest.approx(start["startup_seconds"], abs=0.01)
    assert start["startup_model_seconds"] > 0
    assert start["startup_trainer_seconds"] > 0


@pytest.mark.parametrize("how", ["padding_free=true", "padding_free=false", "gradient_accumulation_steps=2"])
def test_rows_and_trained_tokens_equal_those_of_the_data(how: str) -> None:
    # 60 rows of the demo make 7 batches of 8 and one of 4.
    epoch = ["training.max_steps=-1", "training.num_train_epochs=1", "data.max_rows=60"]
    epoch += ["training.per_device_train_batch_size=8"]
    tune("out", *epoch, f"training.{how}", "training.eval_strategy=no", "training.save_strategy=no")
    (data,) = [
        event.values for event in events(Path("out")) if event.kind == "params" and event.name == "data"
    ]
    assert learnt("out", "samples") == pytest.approx(data["rows"], rel=1e-3)
    assert learnt("out", "trained_tokens") == pytest.approx(data["trained_tokens"], rel=1e-3)


def test_pairs_are_counted_only_as_samples() -> None:
    tune("out", "run.method=dpo", "training.max_steps=2", "training.eval_strategy=no")
    assert learnt("out", "samples") == pytest.approx(2 * 2, rel=1e-3)
    assert learnt("out", "trained_tokens") == 0


def test_without_the_scanner_nothing_is_timed() -> None:
    tune("out", "training.max_steps=1", "resources.interval=0")
    assert not [event for event in events(Path("out")) if event.stage == "system"]


def test_memory_use_is_broken_down_at_the_first_update() -> None:
    """Each part is checked another way: by the weights' own sizes, and by a backward pass of the model."""
    tune("out", "training.max_steps=2", "resources.interval=10")
    (parts,) = (values for values in system("out") if "memory_weights_mb" in values)
    (decided,) = (event.values for event in events(Path("out")) if event.name == "model")
    weights = decided["parameters"] * 4 / 1e6
    assert parts["memory_weights_mb"] == pytest.approx(weights, abs=1e-3)
    assert parts["memory_gradients_mb"] == pytest.approx(weights, abs=1e-3)
    assert parts["memory_optimizer_mb"] == pytest.approx(2 * weights, rel=1e-3)  # AdamW's two moments
    for name in ("weights", "gradients", "optimizer"):
        assert parts[f"memory_{name}_estimated_mb"] == pytest.approx(parts[f"memory_{name}_mb"], rel=0.01)
    kept = parts["memory_activations_mb"]
    assert parts["memory_activations_estimated_mb"] == pytest.approx(kept, rel=0.34)


def test_with_activation_checkpointing_the_other_parts_are_measured() -> None:
    tune("out", "training.max_steps=1", "resources.interval=10", "training.activation_checkpointing=true")
    (parts,) = (values for values in system("out") if "memory_weights_mb" in values)
    assert "memory_activations_mb" not in parts
    assert parts["memory_gradients_mb"] == parts["memory_weights_mb"]


def test_activations_are_what_autograd_keeps_without_weights() -> None:
    from types import SimpleNamespace

    from fmstune.training.memory.parts import MemoryParts

    model = torch.nn.Sequential(torch.nn.Linear(100, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
    args = SimpleNamespace(device=torch.device("cpu"), activation_checkpointing=False, torch_compile=False)
    recorded: list[dict[str, float]] = []
    trainer: Any = SimpleNamespace(
        args=args,
        model=model,
        optimizer=torch.optim.SGD(model.parameters()),
        is_deepspeed_enabled=False,
    )
    parts = MemoryParts(trainer, recorded.append)
    parts.arm()
    with parts.forward(model, {}):
        loss = model(torch.ones(7, 100)).sum()
    assert parts._kept == 4 * (7 * 100 + 7 * 50)  # the input, and ReLU's output, which the next layer shares
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_communication_in_a_step_is_measured_once(tmp_path: Path) -> None:
    done = fmstune_command(
        "train", *FAST, "--max-steps", "4", "--output-dir", "out", "--nproc", "2",
        "--set", "training.save_strategy=no", "--set", "resources.interval=10", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (exchanged,) = (values for values in system(tmp_path / "out") if "collectives" in values)
    (model,) = (event.values for event in events(tmp_path / "out") if event.name == "model")
    # All gradients, and a few numbers: the tokens of the step, the loss to be logged, whether to stop.
    assert 0 <= exchanged["collectives_mb"] - model["parameters"] * 4 / 1e6 < 0.01
    assert exchanged["collectives"] >= 2
    assert exchanged["collectives_seconds"] > 0


def test_the_share_of_a_devices_peak_counts_the_operations_of_the_tokens() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from fmstune.resources.peaks import operations_per_token, peak_of
    from fmstune.training.speed.utilisation import Utilisation, weights_of

    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=100,
                    num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False)
    )  # fmt: skip
    operations = operations_per_token(*weights_of(model))
    # torch's own count of matrix products, without those between tokens, which the formula omits.
    length = 8
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(length)[None], labels=torch.arange(length)[None]).loss.backward()
    matrices = {"mm", "addmm", "bmm"}
    counted = sum(
        number
        for op, number in counter.get_flop_counts()["Global"].items()
        if str(op).split(".")[1] in matrices
    )
    norms = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    assert counted / length == pytest.approx(operations - 6 * norms, rel=0.02)
    assert peak_of("NVIDIA H100 80GB HBM3", "half") == 989e12
    assert peak_of("NVIDIA A100-SXM4-80GB", "float32") == 19.5e12
    for other in ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "Radeon"):
        assert peak_of(other, "half") is None
    assert Utilisation(6e9, 1e12).share(100, 1.2) == pytest.approx(0.5)


class _Counted(torch.nn.Linear):
    """A model that counts how often its weights are counted."""

    asked = 0

    def num_parameters(self, *, exclude_embeddings: bool) -> int:
        self.asked += 1
        return sum(weight.numel() for weight in self.parameters())


class _Plain:
    floating_point_ops = Trainer.floating_point_ops

    def __init__(self, model: Any) -> None:
        self.model = model


class _Timed(TimedTraining, _Plain):
    """As in fmstune's trainers."""


def test_the_trainers_own_estimate_is_used_and_the_weights_are_counted_once() -> None:
    timed, plain = _Timed(_Counted(3, 5)), _Plain(_Counted(3, 5))
    batches = [{"input_ids": torch.zeros(1, size)} for size in (7, 0, 12, 1)]
    expected = [plain.floating_point_ops(batch) for batch in batches]
    assert [timed.floating_point_ops(batch) for batch in batches] == expected
    assert timed.floating_point_ops({}) == 0
    assert timed.model.asked == 2  # also for the empty batch
    timed.model = _Counted(4, 5)
    assert timed.floating_point_ops(batches[0]) == 6 * 7 * 25
