"""Weights of answers and rows weight the loss: Σ weight · loss / Σ weight over an update's tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.config.load.load import load
from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import prepare
from fmstune.data.rendering.render import NO_WEIGHT
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer
from fmstune.trackers.base import Tracker
from fmstune.training.build import BuiltTrainer, build_trainer
from fmstune.training.methods import sft as building
from fmstune.training.speed.lm_head import _own, fit_lm_head
from fmstune.training.trl_compat.head import score_by
from fmstune.training.tuned_trainer import Head

pytestmark = pytest.mark.usefixtures("small_demo")

TOKENIZER = load_tokenizer(ModelConfig(path="demo"))
WEIGHTS = (0.3, 1.0, 0.05, 2.5, 0.0, 1.0)
ROWS = [
    {"prompt": f"Name {number}.", "completion": f" {'word ' * (2 + 3 * number)}{number}", "weight": weight}
    for number, weight in enumerate(WEIGHTS)
]
TRAINED = [row for row in ROWS if row["weight"]]
SMALL = [row | {"weight": 0.01 * row["weight"]} for row in TRAINED]  # their sum is below 1


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def built(tmp_path: Path, rows: Sequence[Any], *sets: str) -> BuiltTrainer:
    """A trainer for one update, by SGD with a learning rate of 1: the change of the weights is the
    gradient."""
    file = write(tmp_path / "rows.jsonl", rows)
    quick = [
        "model.path=demo",
        f"data.train={file}",
        f"data.eval={file}",
        "training.max_steps=1",
        "training.logging_steps=1",
        "training.save_strategy=no",
        "training.eval_strategy=no",
        "training.optim=sgd",
        "training.learning_rate=1",
        "training.warmup_steps=0",
        "training.max_grad_norm=0",
        "training.lr_scheduler_type=constant",
        f"training.per_device_train_batch_size={len(rows)}",
    ]
    return build_trainer(load(None, [], [*quick, *sets], cwd=tmp_path), Tracker(), tmp_path / "out")


def tokens_of(row: Any) -> tuple[list[int], int]:
    """The tokens of a row, and how many of them belong to its prompt."""
    whole = TOKENIZER(row["prompt"] + row["completion"] + str(TOKENIZER.eos_token))["input_ids"]
    return whole, len(TOKENIZER(row["prompt"])["input_ids"])


def by_hand(model: Any, rows: Sequence[Any]) -> torch.Tensor:
    """The weighted mean over all trained tokens, computed row by row from the model's own forward."""
    total, weight = torch.zeros(()), 0.0
    for row in rows:
        ids, begin = tokens_of(row)
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        scored = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        total = total - row["weight"] * scored[begin - 1 :].sum()
        weight += row["weight"] * (len(ids) - begin)
    return total / weight


def as_head(head: Head) -> Any:
    def fit(model: Any, *, direct: bool, experts: bool = False) -> Head:
        if head == "own":
            score_by(model, _own)
            return head
        found = fit_lm_head(model, direct=head == "direct", experts=experts)
        assert found == head
        return found

    return fit


@pytest.mark.parametrize(
    ("head", "rows", "sets"),
    [
        ("direct", ROWS, ["training.padding_free=false"]),
        ("direct", ROWS, ["training.padding_free=true"]),
        ("tiled", ROWS, ["training.padding_free=false"]),
        ("own", ROWS, ["training.padding_free=true"]),
        ("direct", SMALL, []),
        (
            "direct",
            SMALL,
            ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=3"],
        ),
        ("direct", ROWS, ["training.packing=true", "training.max_length=128"]),
        ("direct", ROWS, ["data.streaming=true", "data.shuffle_buffer=1"]),
    ],
)
def test_loss_and_gradient_equal_those_of_the_weighted_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Head, rows: list[Any], sets: list[str]
) -> None:
    monkeypatch.setattr(building, "fit_lm_head", as_head(head))
    size = [] if len(sets) == 2 and "accumulation" in sets[1] else ["training.per_device_train_batch_size=5"]
    run = built(tmp_path, rows, *size, *sets)
    model, trained = run.trainer.model, [row for row in rows if row["weight"]]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    mean = by_hand(model.eval(), trained)
    mean.backward()
    expected = mean.item()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    run.trainer.train()
    assert run.trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, value in model.named_parameters():
        assert torch.allclose(before[name] - value.detach(), gradients[name], atol=1e-4 * largest), name


def test_packing_keeps_the_weights_with_their_tokens(tmp_path: Path) -> None:
    run = built(
        tmp_path, [*ROWS, *ROWS], "data.streaming=true", "training.packing=true", "training.max_length=256"
    )
    packed = next(iter(run.trainer.train_dataset))
    known = {tuple(tokens_of(row)[0]): row["weight"] for row in TRAINED}
    begin = 0
    for length in packed["seq_lengths"]:
        part = slice(begin, begin + length)
        weight = known[tuple(packed["input_ids"][part])]
        trained = {
            value
            for value, label in zip(packed["loss_weights"][part], packed["labels"][part], strict=True)
            if label != IGNORED
        }
        assert list(trained) == [pytest.approx(weight)]
        begin += length
    assert begin > 100


@pytest.mark.parametrize("sets", [[], ["training.packing=true", "training.max_length=128"]])
@pytest.mark.parametrize("size", [1, 4])
def test_the_eval_loss_is_the_weighted_mean_of_all_tokens(tmp_path: Path, size: int, sets: list[str]) -> None:
    run = built(tmp_path, ROWS, f"training.per_device_eval_batch_size={size}", *sets)
    expected = by_hand(run.trainer.model.eval(), TRAINED).item()
    assert run.trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_without_packing_the_weights_of_eval_rows_are_truncated_like_the_tokens(tmp_path: Path) -> None:
    sets = ["training.packing=true", "training.eval_packing=false", "training.max_length=24"]
    run = built(tmp_path, ROWS, *sets)
    for row in run.trainer.eval_dataset:
        assert len(row["loss_weights"]) == len(row["labels"]) <= 24


def test_virtual_tokens_before_the_text_have_no_weight(tmp_path: Path) -> None:
    run = built(tmp_path, ROWS, "prompt_tuning.enabled=true")
    same = built(
        tmp_path, [row | {"weight": float(row["weight"] > 0)} for row in ROWS], "prompt_tuning.enabled=true"
    )
    run.trainer.model.load_state_dict(same.trainer.model.state_dict())
    model, total, weight = run.trainer.model.eval(), 0.0, 0.0
    for row in TRAINED:
        ids, begin = tokens_of(row)
        logits = model(input_ids=torch.tensor([ids])).logits[0, -len(ids) : -1].float()
        scored = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        total -= row["weight"] * scored[begin - 1 :].sum().item()
        weight += row["weight"] * (len(ids) - begin)
    assert run.trainer.evaluate()["eval_loss"] == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize("setting", ["loss_type=dft", "label_smoothing_factor=0.1"])
def test_a_loss_that_does_not_support_weights_refuses_them_by_name(tmp_path: Path, setting: str) -> None:
    with pytest.raises(DataError, match=rf"rows.jsonl line 1: it has the weight 0.3.*training.{setting[:9]}"):
        built(tmp_path, ROWS, f"training.{setting}")
    built(tmp_path, [row | {"weight": float(row["weight"] > 0)} for row in ROWS], f"training.{setting}")


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_weights_of_0_and_1_train_like_no_weights(tmp_path: Path, streaming: str) -> None:
    """Bit for bit, and without a column if the rows are known."""
    losses = []
    for rows in (TRAINED, [row | {"weight": 1} for row in TRAINED]):
        plain = rows if losses else [{k: v for k, v in row.items() if k != "weight"} for row in rows]
        run = built(tmp_path, plain, f"data.streaming={streaming}", "data.shuffle_buffer=1")
        assert ("loss_weights" in run.trainer.train_dataset.column_names) == (streaming == "true")
        run.trainer.train()
        state = run.trainer.model.state_dict()
        losses.append((run.trainer.state.log_history[0]["loss"], {k: v.clone() for k, v in state.items()}))
    (one, first), (other, second) = losses
    assert one == other
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_mixture_uses_weights_of_1_for_sources_without_weights(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", [{"text": "no weights here"}])
    weighted = write(tmp_path / "weighted.jsonl", ROWS)
    named = write(tmp_path / "named.jsonl", [{"q": "Why?", "a": "So.", "importance": 0.25}])
    names = {"prompt": "q", "completion": "a", "loss_weight": "importance"}
    sources = [{"path": plain}, {"path": weighted}, {"path": named, "columns": names}]
    data = prepare(DataConfig(train=sources), TOKENIZER, 16, seed=1).train
    found = {
        round(weight, 6)
        for row in data
        for weight, label in zip(row["loss_weights"], row["labels"], strict=True)
        if label != IGNORED
    }
    assert found == {0.3, 1.0, 0.05, 2.5, 0.25}


SPEECH = st.text("abc de", min_size=1, max_size=12).filter(str.strip)
WEIGHT = st.sampled_from([0, 0.0, 1, 1.0, 0.25, 0.5, 2.0, True, False])


@st.composite
def weighted_conversations(draw: Any) -> tuple[Any, list[tuple[str, float]]]:
    """A row, and its answers with their share of the loss."""
    messages, answers = [], []
    by_row = draw(st.sampled_from([None, 1, 0.5, 4]))
    for number in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(SPEECH)})
        answer = {"role": "assistant", "content": f"{number} {draw(SPEECH)}"}
        weight = draw(st.none() | WEIGHT)
        if weight is not None:
            answer["weight"] = weight
        messages.append(answer)
        part = (1.0 if weight is None else float(weight)) * (1.0 if by_row is None else by_row)
        answers.append((answer["content"], part))
    return {"messages": messages} | ({} if by_row is None else {"loss_weight": by_row}), answers


@pytest.mark.parametrize("all_tokens", [False, True])
@given(drawn=weighted_conversations())
@settings(deadline=None, max_examples=40)
def test_in_any_conversation_each_answer_has_its_own_weight(
    drawn: tuple[Any, list[tuple[str, float]]], all_tokens: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    row, answers = drawn
    file = write(tmp_path_factory.getbasetemp() / f"drawn{all_tokens}.jsonl", [row])
    config = DataConfig(train=file, train_on="all" if all_tokens else "responses")
    trained = [(text, weight) for text, weight in answers if weight]
    if not trained and not all_tokens:
        return
    (made,) = prepare(config, TOKENIZER, None, seed=1).train
    ids, labels = made["input_ids"], made["labels"]
    weights = made.get("loss_weights") or [1.0] * len(ids)
    text = TOKENIZER.decode(ids)
    encoded = TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == ids
    at = 0
    for words, weight in answers:
        at = text.find(words, at)
        if at < 0:
            assert not weight  # nothing is trained after the last answer with a weight
            break
        for (start, end), label, given_weight in zip(encoded["offset_mapping"], labels, weights, strict=True):
            if at <= start and end <= at + len(words):
                assert (label != IGNORED) == bool(weight)
                assert not weight or given_weight == weight
        at += len(words)
    by_row = row.get("loss_weight", 1.0)
    others = {weight for weight, label in zip(weights, labels, strict=True) if label != IGNORED}
    assert others <= {weight for _, weight in trained} | ({by_row} if all_tokens else set())


def chat(answer: str, **fields: Any) -> Any:
    return {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer, **fields}]
    }


NOTHING = [
    chat("a", weight=0),
    chat("", weight=0),
    chat("a") | {"loss_weight": 0},
    {"text": "abc", "weight": 0},
    {"prompt": "p", "completion": "", "weight": 0},
    {"input_ids": [3, 4, 5], "labels": [3, 4, 5], "weight": 0},
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("row", NOTHING)
def test_a_row_of_weight_0_is_reported_and_the_others_train(
    tmp_path: Path, row: Any, streaming: bool
) -> None:
    other = {name: value for name, value in row.items() if name not in ("weight", "loss_weight")}
    if "messages" in row:
        other = chat("b")
    elif "completion" in row:
        other |= {"completion": "c"}
    file = write(tmp_path / "rows.jsonl", [row, row, other])
    config = DataConfig(train=file, streaming=streaming)
    line, *_ = prepare(config, TOKENIZER, None, seed=0).summary.unused_lines()
    assert line.startswith(f"{NO_WEIGHT} (2 rows; the first is {file} line 1)")
    write(tmp_path / "rows.jsonl", [row, row])
    with pytest.raises(DataError, match=rf"rows.jsonl: none of its rows is trained: {NO_WEIGHT} \(2 rows"):
        prepare(config, TOKENIZER, None, seed=0)
