"""`model.lr_multipliers`: the named weights learn with a multiple of the learning rate."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.optimizers import create_loraplus_optimizer
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AutoModelForCausalLM

from fmstune.errors import ConfigError
from fmstune.training.trainers.rates import factors_of
from tests.support.architectures import save_tiny
from tests.support.fsdp_on_cpu import require_same_weights
from tests.support.preferred import build, pairs, write
from tests.support.tracked import rewrite_as_interrupted
from tests.support.tuned import tune, weights

pytestmark = pytest.mark.usefixtures("small_demo")
METHODS = ("sft", "dpo", "kto", "reward", "orpo")
NAMES = ("layers.0", "layers.1.mlp", "embed_tokens", "norm", "layers.1.self_attn.q_proj")
"""No weight has two of these names."""
ONE_STEP = (
    "training.optim=sgd", "training.learning_rate=0.5", "training.max_grad_norm=0", "training.max_steps=1",
    "training.warmup_steps=0", "training.save_strategy=no", 'training.eval_strategy="no"',
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, and a model of two layers."""
    folder = tmp_path_factory.mktemp("multipliers")
    rows = pairs(8)
    write(str(folder / "pairs.jsonl"), rows)
    chats = [{"messages": [*row["prompt"], *row["chosen"]]} for row in rows]
    write(str(folder / "chats.jsonl"), chats)
    save_tiny("llama", folder / "model", tie_word_embeddings=False, num_hidden_layers=2)
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def table(factors: dict[str, float]) -> str:
    return "{" + ", ".join(f'"{name}" = {factor}' for name, factor in factors.items()) + "}"


def learnt(method: str, *sets: str) -> dict[str, torch.Tensor]:
    """What each weight has learnt in one step."""
    data = "chats.jsonl" if method == "sft" else "pairs.jsonl"
    trainer = build(method, *ONE_STEP, *sets, "model.path=model", data=data).trainer
    named = dict(trainer.model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in named.items()}
    trainer.train()
    return {name: weight.detach() - before[name] for name, weight in named.items()}


@functools.cache
def plain(method: str) -> dict[str, torch.Tensor]:
    return learnt(method)


@settings(max_examples=15)
@given(
    method=st.sampled_from(METHODS),
    factors=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.25, 2.0, 16.0]), min_size=1),
)
def test_the_named_weights_learn_as_many_times_as_much(method: str, factors: dict[str, float]) -> None:
    found = learnt(method, f"model.lr_multipliers={table(factors)}")
    for name, step in plain(method).items():
        own = [factor for part, factor in factors.items() if f".{part}." in f".{name}"]
        factor = own[0] if own else 1
        torch.testing.assert_close(found[name], factor * step, rtol=1e-4, atol=1e-6, msg=name)


def test_lora_plus_has_the_learning_rates_of_pefts_optimizer() -> None:
    sets = ("lora.enabled=true", "model.lr_multipliers={lora_B = 16}", "training.weight_decay=0.1")
    trainer = build(
        "sft", *sets, "model.path=model", "training.learning_rate=0.001", data="chats.jsonl"
    ).trainer
    theirs = create_loraplus_optimizer(
        trainer.model, torch.optim.AdamW, lr=0.001, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    ours = trainer.create_optimizer()
    found, expected = (
        {
            id(weight): (group["lr"], group["weight_decay"])
            for group in each.param_groups
            for weight in group["params"]
        }
        for each in (ours, theirs)
    )
    assert found == expected
    assert ours.param_groups[0]["lr"] == 0.001  # the one that is logged


@settings(max_examples=20)
@given(
    schedule=st.sampled_from(["reduce_lr_on_plateau", "greedy"]),
    bounds=st.fixed_dictionaries({}, optional={"min_lr": st.sampled_from([0.0, 2e-4, 9e-4])}),
    losses=st.lists(st.floats(0.1, 10), min_size=1, max_size=8),
)
def test_a_schedule_that_follows_evaluations_holds_for_all(
    schedule: str, bounds: dict[str, float], losses: list[float]
) -> None:
    how = {"patience": 0, "factor": 0.5, **bounds}
    how |= {"smooth": False, "max_lr": 2e-3, "reset_start": 1} if schedule == "greedy" else {}
    written = ", ".join(f"{name} = {str(value).lower()}" for name, value in how.items())
    trainer = build(
        "sft", "model.path=model", "training.learning_rate=0.001", f"training.lr_scheduler_type={schedule}",
        f"training.lr_scheduler_kwargs={{{written}}}", 'model.lr_multipliers={"layers.0" = 0.1, norm = 8}',
        'training.eval_strategy="epoch"', 'data.eval="chats.jsonl"', data="chats.jsonl",
    ).trainer  # fmt: skip
    groups = trainer.create_optimizer().param_groups
    factors = [group["lr"] / 0.001 for group in groups]
    assert {round(factor, 6) for factor in factors} == {1, 0.1, 8}
    schedule_of = trainer.create_scheduler(num_training_steps=10)
    for loss in losses:
        schedule_of.step(loss)
        rates = [group["lr"] for group in groups]
        assert rates == pytest.approx([rates[0] * factor for factor in factors])


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ("model.lr_multipliers={mlp = 4}", "training.save_steps=2", "training.max_steps=4")
    tune("whole", *sets)
    tune("parted", *sets[:2], "training.max_steps=2")
    rewrite_as_interrupted(tmp_path / "parted")
    for other, named in (
        (("model.lr_multipliers={mlp = 2}",), r"\{'mlp': 2\}"),
        ((), "one without it"),
    ):
        message = rf"a run with model\.lr_multipliers = \{{'mlp': 4\}}, and its state does not fit {named}\."
        with pytest.raises(ConfigError, match=message):
            tune("parted", *sets[1:], *other, resume="auto")
    tune("parted", *sets, resume="auto")
    assert weights("parted") == weights("whole")


def test_a_sharded_model_learns_the_same(tmp_path: Path) -> None:
    require_same_weights(tmp_path, 'model.lr_multipliers={"layers.0" = 8}', 1e-3)


def test_the_wrappers_of_fsdp_do_not_hide_a_weight() -> None:
    """FSDP's first version, which wraps modules, needs a GPU."""
    model = AutoModelForCausalLM.from_pretrained("model")
    weight = model.model.layers[0].mlp.up_proj.weight
    layer = torch.nn.Module()
    layer.add_module("_fsdp_wrapped_module", checkpoint_wrapper(model.model.layers[0]))
    model.model.layers[0] = layer
    assert factors_of(model, {"layers.0.mlp.up_proj": 2.0}) == {id(weight): 2.0}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("model.lr_multipliers={layer = 2}",), "no weights called 'layer'"),
        (("model.lr_multipliers={mlp = 2, up_proj = 3}",), "mlp and up_proj both name"),
        (("model.lr_multipliers={mlp = 0}",), "the factor of 'mlp' is 0; it must be more than 0"),
        (("model.lr_multipliers={mlp = 2}", 'model.trainable=["norm"]'), "mlp names no weights that are"),
        (("model.lr_multipliers={norm = 2}", "lora.enabled=true"), "norm names no weights that are trained"),
        (("model.lr_multipliers.norm=2", "training.optim=lomo"), "'lomo' has one learning rate for all"),
        (("model.lr_multipliers={norm = inf}",), "that of norm is not a finite number"),
        (('model.lr_multipliers={norm = "2"}',), "it takes a table of numbers"),
    ],
)
def test_what_is_impossible_is_refused(sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("sft", *sets, "model.path=model", data="chats.jsonl")


def test_an_optimizer_without_learning_rates_is_refused() -> None:
    sets = ("training.optim=adafactor", "model.lr_multipliers={mlp = 2}", "model.path=model")
    trainer = build("sft", *sets, data="chats.jsonl").trainer
    trainer.args.learning_rate = None  # it chooses one for each step
    with pytest.raises(ConfigError, match="Adafactor has no learning rates for single weights"):
        trainer.create_optimizer()
