"""Prompts and answers become the tokens that TRL's own trainers would create from them."""

from __future__ import annotations

import copy
import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import tomli
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, DataSource, ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.data.rendering.answer import Writer
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.preferences import REPEATED
from fmstune.data.rows.reader import Reader
from fmstune.data.tokens.preferences import EMPTY_BAD, OTHERS_LEARNT, AnswerEncoder
from fmstune.data.tokens.table import TokenRow
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer
from fmstune.training.methods.kto import with_other_answers
from fmstune.training.methods.trained import trained_by

TOKENIZER = load_tokenizer(ModelConfig(path="demo"))
TRAINERS: dict[str, Any] = {"dpo": trl.DPOTrainer, "kto": trl.KTOTrainer, "reward": trl.RewardTrainer}
# It renders a prompt alone differently than before an answer.
CLOSED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: Well,{% endif %}"
)


def chat(prompt: str, good: str, bad: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": good}],
        "rejected": [{"role": "assistant", "content": bad}],
    }


def text(prompt: str, good: str, bad: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": good, "rejected": bad}


CHATS = [chat("What is it?", "A lamp.", "Nothing at all, dear."), chat("Why?", "So.", "Because it is.")]
TEXTS = [text("The lamp ", "costs 9", "is red<|im_end|>"), text("", "a", "b c d")]


def by_trl(method: str, rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> list[dict[str, Any]]:
    """The rows as TRL's trainer processes them: its own function, with the few attributes it needs of the
    trainer."""
    args = trained_by(method).arguments(output_dir="unused", report_to="none", use_cpu=True, **settings)
    trainer = SimpleNamespace(_tokenizer=tokenizer, calculate_KL=True)
    made = TRAINERS[method]._prepare_dataset(
        trainer, datasets.Dataset.from_list(rows), tokenizer, args, "some"
    )
    return [{k: v for k, v in row.items() if k in ("label", "margin") or k.endswith("_ids")} for row in made]


def encoded(
    method: str, rows: list[dict[str, Any]], tokenizer: Any, tmp_path: Path, **how: Any
) -> list[TokenRow]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = AnswerEncoder(Writer(tokenizer), method, **{"max_length": None, **how})
    return list(encoder.rows(Reader(DataSource(str(path)), "train", DataConfig(), BadRows(), method=method)))


def singles(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for row in rows
        for key in ("chosen", "rejected")
    ]


def with_template(template: str) -> Any:
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("method", TRAINERS)
@pytest.mark.parametrize("rows", [CHATS, TEXTS, [{**row, "margin": 0.5} for row in CHATS]])
def test_the_tokens_equal_those_of_trl(method: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    theirs = by_trl(method, singles(rows) if method == "kto" else rows, TOKENIZER, max_length=None)
    if method != "reward":
        theirs = [{k: v for k, v in row.items() if k != "margin"} for row in theirs]
    if method == "kto":
        theirs = [{k: v for k, v in row.items() if k != "KL_completion_ids"} for row in theirs]
    assert [dict(row.columns) for row in encoded(method, rows, TOKENIZER, tmp_path)] == theirs


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_answers_that_do_not_continue_the_prompt_are_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: .* does not continue its own prompt"):
        encoded(method, CHATS, with_template(CLOSED), tmp_path)


def test_reward_models_judge_whole_conversations_whatever_the_prompt(tmp_path: Path) -> None:
    theirs = by_trl("reward", CHATS, with_template(CLOSED), max_length=None)
    assert [dict(row.columns) for row in encoded("reward", CHATS, with_template(CLOSED), tmp_path)] == theirs


@pytest.mark.parametrize(
    ("method", "keep_end"), [("dpo", False), ("dpo", True), ("kto", False), ("reward", False)]
)
def test_the_rows_that_are_too_long_are_those_that_trl_drops(
    method: str, keep_end: bool, tmp_path: Path
) -> None:
    more = {"truncation_mode": "keep_end"} if keep_end else {}
    rows = [text("word " * count, "yes " * answer, "no") for count in (1, 8, 14) for answer in (1, 9, 20)]
    theirs = by_trl(method, singles(rows) if method == "kto" else rows, TOKENIZER, max_length=12, **more)
    found = encoded(method, rows, TOKENIZER, tmp_path, max_length=12, keep_end=keep_end)
    ours = [row for row in found if row.trained]
    names = [name for name in theirs[0] if name != "KL_completion_ids"]
    assert [dict(row.columns) for row in ours] == [{name: row[name] for name in names} for row in theirs]
    assert 0 < len(ours) < len(found) or keep_end


def test_the_mismatched_answers_of_kto_are_those_that_trl_pairs(tmp_path: Path) -> None:
    rows = [text(f"number {n}", f"good {n}", f"bad {n} indeed") for n in range(10)]
    alone = singles(rows)[::3]  # each of another prompt
    theirs = by_trl("kto", alone, TOKENIZER, per_device_train_batch_size=4)
    plain = [dict(row.columns) for row in encoded("kto", alone, TOKENIZER, tmp_path)]
    made = with_other_answers(datasets.Dataset.from_list(plain), 4)
    assert made.to_list() == theirs
    assert with_other_answers(with_other_answers(made, 3), 4).to_list() == theirs
    streamed = datasets.Dataset.from_list(plain).to_iterable_dataset()
    assert list(with_other_answers(streamed, 4)) == theirs


def test_kto_compares_the_rows_of_a_pair_with_answers_to_other_prompts(tmp_path: Path) -> None:
    rows = [text(f"number {n}", f"good {n}", f"bad {n} indeed") for n in range(5)]
    plain = [dict(row.columns) for row in encoded("kto", rows, TOKENIZER, tmp_path)]
    made = with_other_answers(datasets.Dataset.from_list(plain), 4, met := []).to_list()
    answers = {tuple(row["completion_ids"]): row["prompt_ids"] for row in plain}
    own = [row["prompt_ids"] == answers[tuple(row["KL_completion_ids"])] for row in made]
    assert own == [False] * 8 + [True] * 2  # the last batch has one prompt only
    assert met == [0, 0, 2]


word = st.text(alphabet="ab é😀\n<|im_end|>", max_size=8)


@settings(max_examples=25)  # each example is a data set
@given(
    rows=st.lists(st.tuples(word, word, word), min_size=1, max_size=4),
    method=st.sampled_from(list(TRAINERS)),
)
def test_no_text_has_different_tokens_than_in_trl(
    rows: list[tuple[str, str, str]], method: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pairs = [text(*row) for row in rows if row[1] != row[2] and row[1].strip()]
    if pairs:
        folder = tmp_path_factory.mktemp("rows")
        theirs = by_trl(method, singles(pairs) if method == "kto" else pairs, TOKENIZER, max_length=None)
        ours = [dict(row.columns) for row in encoded(method, pairs, TOKENIZER, folder)]
        assert ours == [{k: v for k, v in row.items() if k != "KL_completion_ids"} for row in theirs]


def of(path: Path, method: str, rows: list[dict[str, Any]], seed: int = 1, **settings: Any) -> PreparedData:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(DataConfig(train=str(path), **settings), TOKENIZER, 64, seed, method=method)


def test_rows_whose_prompt_ends_in_different_tokens_before_an_answer_are_counted(tmp_path: Path) -> None:
    assert of(tmp_path / "x.jsonl", "dpo", TEXTS).summary.reworded == 1
    assert of(tmp_path / "x.jsonl", "reward", TEXTS).summary.reworded == 0


def test_both_answers_to_a_prompt_are_trained_or_both_are_held_out(tmp_path: Path) -> None:
    rows = [text(f"number {n}", f"good {n}", f"bad {n}") for n in range(20)]
    data = of(tmp_path / "x.jsonl", "kto", rows, eval_fraction=0.25)
    assert data.eval is not None
    held, trained = ({tuple(ids) for ids in part["prompt_ids"]} for part in (data.eval, data.train))
    assert (len(held), len(trained)) == (5, 15)
    assert not held & trained
    assert sum(data.eval["label"]) == 5


def test_kto_answers_are_in_a_random_order_that_depends_on_the_seed(tmp_path: Path) -> None:
    rows = [text(f"number {n}", f"good {n}", f"bad {n}") for n in range(8)]
    orders = [of(tmp_path / "x.jsonl", "kto", rows, seed).train["label"] for seed in (1, 1, 2)]
    assert list(orders[0]) == list(orders[1]) != list(orders[2])
    assert list(orders[0]) not in ([True, False] * 8, [True] * 8 + [False] * 8)


@pytest.mark.parametrize("method", TRAINERS)
def test_a_mixture_of_preferences_has_its_weights(method: str, tmp_path: Path) -> None:
    sources = []
    for name, count, weight in (("a", 6, 1.0), ("b", 3, 2.0)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(text(f"{name} {n}", "yes", "no")) + "\n" for n in range(count)))
        sources.append(DataSource(str(path), weight=weight))
    data = prepare(DataConfig(train=tuple(sources)), TOKENIZER, 64, 1, method=method)
    begins = ["a" in place.rpartition("/")[2][:1] for place in data.places]
    assert begins.count(False) == 2 * begins.count(True) == (24 if method == "kto" else 12)
    assert [each.times for each in data.summary.sources] == [1, 4]


@pytest.mark.parametrize("method", TRAINERS)
def test_streamed_preferences_equal_those_in_memory(method: str, tmp_path: Path) -> None:
    rows = [text(f"number {n}", f"good {n}", f"bad {n}") for n in range(6)]
    whole = [dict(row.columns) for row in encoded(method, rows, TOKENIZER, tmp_path)]
    config = DataConfig(train=str(tmp_path / "rows.jsonl"), streaming=True, shuffle_buffer=1)
    streamed = prepare(config, TOKENIZER, 64, 1, method=method)
    assert [row for row, _ in zip(streamed.train, whole, strict=False)] == whole
    assert streamed.summary.shape == "chosen/rejected"


@pytest.mark.parametrize("weight", [None, 1])
@pytest.mark.parametrize("first", ["with", "without"])
@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_without_a_margin_have_one_of_zero_beside_pairs_that_have_some(
    streaming: bool, first: str, weight: int | None, tmp_path: Path
) -> None:
    rows = [text(f"number {n}", f"good {n}", f"bad {n}") for n in range(3)]
    for name, more in (("with", {"margin": 0.5}), ("without", {})):
        lines = (json.dumps({**row, "prompt": name + row["prompt"]} | more) for row in rows)
        Path(tmp_path, name).with_suffix(".jsonl").write_text("\n".join(lines))
    names = [first, *({"with", "without"} - {first})]
    sources = tuple(DataSource(f"{tmp_path}/{name}.jsonl", weight=weight) for name in names)
    config = DataConfig(train=sources, streaming=streaming)
    found = islice(prepare(config, TOKENIZER, 64, 1, method="reward").train, 12 if streaming else None)
    margins = {(TOKENIZER.decode(row["chosen_ids"]).startswith("without"), row["margin"]) for row in found}
    assert margins == {(False, 0.5), (True, 0.0)}


def test_a_row_that_the_chat_template_refuses_may_be_skipped(tmp_path: Path) -> None:
    tokenizer = with_template(
        "{% for m in messages %}{% if m.content == 'Why?' %}{{ raise_exception('never why') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    made = prepare(DataConfig(train=str(path), skip_bad_rows=True), tokenizer, 64, 1, method="dpo")
    assert (made.summary.rows, made.summary.skipped) == (1, 1)
    assert "line 2: the model's chat template refuses this conversation: never why" in made.bad.first[0]


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto", "reward"])
@pytest.mark.parametrize("form", [chat, text])
def test_an_empty_chosen_answer_is_refused_and_an_empty_rejected_one_reported(
    tmp_path: Path, method: str, form: Any
) -> None:
    path = tmp_path / "x.jsonl"

    def made(good: str, bad: str) -> PreparedData:
        rows = [form("What?", good, bad)]
        if method == "kto":
            rows = singles(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return prepare(DataConfig(train=str(path), cache=False), TOKENIZER, 64, 1, method=method)

    with pytest.raises(DataError, match=r"line 1: `\w+` is empty, but it is the better answer"):
        made(" ", "b")
    assert EMPTY_BAD in [entry.what for entry in made("a", "").summary.unused]
    assert EMPTY_BAD not in [entry.what for entry in made("a", "b").summary.unused]


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto", "reward"])
def test_messages_of_others_that_an_answer_contains_are_reported(tmp_path: Path, method: str) -> None:
    said = [("assistant", "A word?"), ("user", "Yes."), ("assistant", "So.")]
    several = [{"role": role, "content": content} for role, content in said]
    asked = {"prompt": [{"role": "user", "content": "Say."}]}
    path = tmp_path / "x.jsonl"

    def reported(answer: Any) -> list[str]:
        rows = [{**asked, "chosen": answer, "rejected": [{"role": "assistant", "content": "No."}]}]
        rows = singles(rows) if method == "kto" else rows
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = prepare(DataConfig(train=str(path), cache=False), TOKENIZER, 64, 1, method=method)
        return [entry.what for entry in found.summary.unused]

    assert reported(several) == ([] if method == "reward" else [OTHERS_LEARNT])
    assert reported(several[:1]) == []


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
@pytest.mark.parametrize("question", ["prompt", "question"])
def test_answers_that_repeat_their_prompt_are_reported(tmp_path: Path, method: str, question: str) -> None:
    path = tmp_path / "x.jsonl"

    def reported(asked: str, good: str, bad: str) -> list[str]:
        row = {question: asked, "chosen": good, "rejected": bad}
        rows = [row]
        if method == "kto":
            rows = [{question: asked, "completion": good, "label": True}]
            rows += [{question: asked, "completion": bad, "label": False}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = prepare(DataConfig(train=str(path), cache=False), TOKENIZER, 64, 1, method=method)
        return [entry.what for entry in found.summary.unused]

    assert reported("Is it red? ", "Is it red? Yes.", "It is.")[:1] == [REPEATED]
    assert REPEATED not in reported("The", "The lamp.", "The chair.")


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward"])
def test_texts_for_a_model_with_a_chat_template_are_reported_with_the_columns_for_a_chat(
    tmp_path: Path, method: str
) -> None:
    path = tmp_path / "x.jsonl"

    def reported(question: str, tokenizer: Any = TOKENIZER, columns: Any = None) -> list[str]:
        pair: dict[str, Any] = {"prompt": question, "chosen": "Yes.", "rejected": "No."}
        one = {"prompt": question, "completion": "Yes."} | ({"label": True} if method == "kto" else {})
        path.write_text(json.dumps(one if method in ("sft", "kto") else pair) + "\n")
        config = DataConfig(train=str(path), columns=columns, cache=False)
        return [each.what for each in prepare(config, tokenizer, 64, 1, method=method).summary.unused]

    (told,) = reported("Is it red?")
    assert told.startswith("the chat template is not used: `prompt` and `")
    columns = tomli.loads(told.partition("set data.")[2])["columns"]
    assert reported("Is it red?", columns=columns) == []
    assert reported("<|im_start|>user\nIs it red?<|im_end|>\n<|im_start|>assistant\n") == []
    plain = copy.deepcopy(TOKENIZER)
    plain.chat_template = None
    assert reported("Is it red?", plain) == []
