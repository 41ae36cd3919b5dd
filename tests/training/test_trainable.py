"""`model.trainable`: the named weights learn what they learn with all others, which stay as they are."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.errors import ConfigError
from fmstune.training.memory.workload import workload
from tests.support.architectures import save_tiny
from tests.support.fsdp_on_cpu import require_same_weights
from tests.support.loading import DEMO_FILE, refusal
from tests.support.preferred import build, pairs, write
from tests.support.tracked import rewrite_as_interrupted
from tests.support.tuned import tune, weights

pytestmark = pytest.mark.usefixtures("small_demo")
LAYERS = 11
METHODS = ("sft", "dpo", "kto", "reward", "orpo")
NAMES = (
    "layers.0",
    "layers.1",
    "mlp",
    "self_attn",
    "norm",
    "embed_tokens",
    "lm_head",
    "layers.[01].mlp",
    "q_proj",
)
ONE_STEP = (
    "training.optim=sgd", "training.learning_rate=0.5", "training.max_grad_norm=0", "training.max_steps=1",
    "training.warmup_steps=0", "training.save_strategy=no", 'training.eval_strategy="no"',
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, and a model of eleven layers."""
    folder = tmp_path_factory.mktemp("trainable")
    rows = pairs(8)
    write(str(folder / "pairs.jsonl"), rows)
    chats = [{"messages": [*row["prompt"], *row["chosen"]]} for row in rows]
    write(str(folder / "chats.jsonl"), chats)
    save_tiny("llama", folder / "model", num_hidden_layers=LAYERS)
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@functools.cache
def learnt(method: str, trainable: tuple[str, ...] = (), *more: str) -> tuple[dict[str, torch.Tensor], ...]:
    """The weights before and after one step."""
    data = "chats.jsonl" if method == "sft" else "pairs.jsonl"
    sets = [*ONE_STEP, *more, "model.path=model", f"model.trainable={list(trainable)}".replace("'", '"')]
    trainer = build(method, *sets, data=data).trainer
    named = dict(trainer.model.named_parameters(remove_duplicate=False))
    before = {name: weight.detach().clone() for name, weight in named.items()}
    trainer.train()
    return before, {name: weight.detach() for name, weight in named.items()}


def is_named(weight: str, patterns: tuple[str, ...]) -> bool:
    """By the parts of its path, without regular expressions."""
    parts = weight.split(".")
    for pattern in patterns:
        wanted = pattern.replace("[01]", "0|1").split(".")
        for at in range(len(parts) - len(wanted) + 1):
            own = parts[at : at + len(wanted)]
            if all(part in one.split("|") for one, part in zip(wanted, own, strict=True)):
                return True
    return False


@settings(max_examples=20)
@given(
    method=st.sampled_from(METHODS),
    patterns=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True).map(tuple),
)
def test_the_named_weights_learn_what_they_learn_with_all_others(
    method: str, patterns: tuple[str, ...]
) -> None:
    if method == "reward":  # it has no head for tokens
        patterns = tuple(name for name in patterns if name != "lm_head") or ("norm",)
    before, after = learnt(method, patterns)
    _, whole = learnt(method)
    for name, weight in after.items():
        if is_named(name, patterns) or name.startswith("score"):
            torch.testing.assert_close(weight, whole[name], msg=name)
            assert not torch.equal(weight, before[name]), name
        else:
            assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("kwargs", ["{use_reentrant=true}", "{use_reentrant=false}"])
def test_checkpointed_activations_change_nothing(kwargs: str) -> None:
    more = ("training.gradient_checkpointing=true", f"training.gradient_checkpointing_kwargs={kwargs}")
    _, expected = learnt("sft", ("layers.0",))
    _, found = learnt("sft", ("layers.0",), *more)
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], msg=name)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ('model.trainable=["layers.0"]', "training.save_steps=2", "training.max_steps=4")
    tune("whole", *sets)
    tune("parted", *sets[:2], "training.max_steps=2")
    rewrite_as_interrupted(tmp_path / "parted")
    for other in ('["norm"]', "[]"):
        with pytest.raises(ConfigError, match=r"model\.trainable"):
            tune("parted", *sets, f"model.trainable={other}", resume="auto")
    tune("parted", *sets, resume="auto")
    assert weights("parted") == weights("whole")


def test_a_sharded_model_keeps_the_other_weights(tmp_path: Path) -> None:
    require_same_weights(tmp_path, 'model.trainable=["layers.0"]', 2e-4)


@pytest.mark.parametrize(
    ("tied", "trainable", "frozen"),
    [
        (True, '["norm"]', "embed_tokens and lm_head"),
        (True, '["norm", "embed_tokens"]', None),
        (False, '["embed_tokens"]', "lm_head"),
        (False, '["lm_head"]', "embed_tokens"),
        (False, '["embed_tokens", "lm_head"]', None),
    ],
)
def test_new_embeddings_that_stay_as_they_are_are_named(
    tmp_path: Path, *, tied: bool, trainable: str, frozen: str | None
) -> None:
    save_tiny("llama", tmp_path / "model", tie_word_embeddings=tied)
    sets = (f"model.path={tmp_path}/model", f"model.trainable={trainable}", 'model.add_tokens=["<lamp>"]')
    notes = build("sft", *sets, data="chats.jsonl").notes
    said = [note for note in notes if "model.trainable keeps them so" in note]
    assert len(said) == (frozen is not None)
    assert frozen is None or f"keeps them so in {frozen}, which it does not name" in said[0]


@pytest.mark.parametrize(
    ("trainable", "said"),
    [
        ('["layer.1"]', "no weights called 'layer.1'"),
        ('["lm_heads"]', "Did you mean lm_head?"),
        ('["layers.11"]', "no weights called 'layers.11'"),  # the last one is 10
        ('["("]', "is not a regular expression: missing ), unterminated subpattern at position 0"),
        ('["norm", "mlp)|(norm"]', "is not a regular expression: unbalanced parenthesis at position 3"),
    ],
)
def test_a_name_of_no_weight_is_refused(trainable: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("sft", "model.path=model", f"model.trainable={trainable}", data="chats.jsonl")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "every"),
    [("(?!lm_head).*", True), ("^(?!lm_head).*", False)],  # without ^ it is the name `weight`, too
)
def test_names_of_all_weights_are_reported(pattern: str, every: bool) -> None:
    trainer = build("sft", "model.path=model", f'model.trainable=["{pattern}"]', data="chats.jsonl")
    assert any("names all of the weights" in note for note in trainer.notes) is every


def test_an_adapter_chooses_its_own_weights(tmp_path: Path) -> None:
    text = (
        DEMO_FILE.replace('path = "demo"', 'path = "demo"\ntrainable = ["norm"]') + "[lora]\nenabled = true\n"
    )
    assert "model.trainable is for training without an adapter" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("trainable", "layers"),
    [
        ('["layers.[4-6]"]', LAYERS - 4),
        ('["layers.10", "norm"]', 1),
        ('["lm_head", "norm"]', 0),
        ('["layers.10", "input_layernorm"]', LAYERS),
        ('["layers.10", "embed_tokens"]', LAYERS),
        ("[]", LAYERS),
    ],
)
def test_memory_is_estimated_for_the_layers_that_gradients_reach(trainable: str, layers: int) -> None:
    trainer = build("sft", "model.path=model", f"model.trainable={trainable}", data="chats.jsonl").trainer
    work = workload(trainer)
    assert work is not None
    assert work.layers - work.frozen_layers == layers


def test_memory_is_estimated_for_all_layers_where_gradients_reach_the_inputs() -> None:
    reentrant = "training.gradient_checkpointing_kwargs={use_reentrant=true}"
    more = ('model.trainable=["layers.10"]', "training.gradient_checkpointing=true", reentrant)
    work = workload(build("sft", "model.path=model", *more, data="chats.jsonl").trainer)
    assert work is not None
    assert work.frozen_layers == 0
