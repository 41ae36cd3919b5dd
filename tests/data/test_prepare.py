"""Prepared data are truncated, held out and counted as the summary says, and deterministic."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmstune import demo
from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from fmstune.models.load import load_tokenizer
from tests.support.logs import Logs
from tests.support.rendered import adding, chat, seen_and_trained, tokenizer

# Like DeepSeek's: the prompt opens a block of reasoning, and the answers of a conversation have none.
OPENS_REASONING = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ '<|im_start|>assistant\\n' + message['content'].split('</think>')[-1] + '<|im_end|>' }}
{%- else -%}
{{ '<|im_start|>user\\n' + message['content'] }}
{%- endif -%}
{%- endfor -%}
{{ '<|im_start|>assistant\\n<think>\\n' if add_generation_prompt }}"""

# Like Nemotron's: such an answer also has a block of reasoning, an empty one.
EMPTY_REASONING = OPENS_REASONING.replace(
    "message['content'].split", "'<think></think>' + message['content'].split"
)

# Like Qwen3's: the last answer gets an empty block of reasoning, answers before another turn do not.
LAST_WITH_REASONING = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif -%}
{{ message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""

QUESTION = [{"role": "user", "content": "a"}]
GOOD: dict[str, Any] = {
    "completion": {"completion": "b c"},
    "messages": {"messages": [*QUESTION, {"role": "assistant", "content": "b"}]},
    "text": {"text": "b c d"},
}

TOKENIZER = load_tokenizer(ModelConfig(path="demo"))


def write(tmp_path: Path, *rows: Any, name: str = "rows.jsonl") -> DataConfig:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(train=str(tmp_path / name))


def length(text: str) -> int:
    return len(TOKENIZER(text)["input_ids"])


def columns(data: PreparedData) -> list[Any]:
    return [part.to_dict() if part is not None else None for part in (data.train, data.eval)]


def numbered(data: Any) -> list[str]:
    return [TOKENIZER.decode(ids) for ids in data["input_ids"]]


def test_the_demo_is_prepared_with_its_eval_rows() -> None:
    data = prepare(DataConfig(train="demo", eval="demo"), TOKENIZER, 256, seed=1)
    summary = data.summary
    assert (len(data.train), len(data.eval or ())) == (summary.rows, summary.eval_rows) == (400, 60)
    assert summary.tokens == sum(map(len, data.train["input_ids"]))
    assert summary.longest == max(map(len, data.train["input_ids"]))
    assert summary.trained_tokens == sum(label != IGNORED for row in data.train["labels"] for label in row)
    assert (summary.truncated, summary.dropped) == (0, 0)
    assert summary.line().startswith("demo · 400 rows (messages), 15,083 tokens, 30% trained")
    assert summary.line().endswith("eval 60 rows")


def test_rows_are_truncated_at_their_end_and_dropped_if_no_answer_is_left(tmp_path: Path) -> None:
    short, cut = {"prompt": "a:", "completion": " b"}, {"prompt": "a:", "completion": " b" * 50}
    lost = {"prompt": "a " * 50, "completion": " b"}
    data = prepare(write(tmp_path, short, cut, lost, short), TOKENIZER, 10, seed=1)
    summary = data.summary
    assert [len(ids) for ids in data.train["input_ids"]] == [4, 10, 4]
    assert [len(labels) for labels in data.train["labels"]] == [4, 10, 4]
    assert (summary.rows, summary.truncated, summary.dropped, summary.longest) == (3, 2, 1, 10)
    assert (summary.tokens, summary.trained_tokens) == (18, 2 + 8 + 2)
    assert "2 rows cut · 1 row left out" in summary.line()


def test_a_row_of_exactly_the_maximum_length_is_not_truncated(tmp_path: Path) -> None:
    config = write(tmp_path, {"text": "one two three"})
    fits = length("one two three") + 1
    assert prepare(config, TOKENIZER, fits, seed=1).summary.truncated == 0
    assert prepare(config, TOKENIZER, fits - 1, seed=1).summary.truncated == 1
    assert prepare(config, TOKENIZER, None, seed=1).summary.longest == fits


def test_data_without_any_remaining_row_are_refused_with_a_remedy(tmp_path: Path) -> None:
    config = write(tmp_path, {"prompt": "a " * 50, "completion": " b"})
    with pytest.raises(
        DataError, match=r"of its 1 row, none has a token to train on .*max_length = 10.*raise"
    ):
        prepare(config, TOKENIZER, 10, seed=1)


def test_rows_without_any_answer_are_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    tokenizer.eos_token = None
    for row, reason in (
        ({"prompt": "a b", "completion": " "}, "the completion is empty; .* --skip-bad-rows"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": ""}]}, "what the assistant says is empty"),
        ({"text": ""}, "`text` is empty"),
        ({"text": "a"}, "has no token to train on"),
    ):
        with pytest.raises(DataError, match=f"line 2: .*{reason}"):
            prepare(write(tmp_path, {**row, **GOOD[next(reversed(row))]}, row), tokenizer, 10, seed=1)


def test_eval_data_without_any_remaining_row_are_refused_too(tmp_path: Path) -> None:
    evaluation = write(tmp_path, {"prompt": "a " * 50, "completion": " b"}, name="eval.jsonl").train
    config = replace(write(tmp_path, {"text": "a b"}), eval=evaluation)
    with pytest.raises(DataError, match=r"eval\.jsonl: of its 1 row, none"):
        prepare(config, TOKENIZER, 10, seed=1)


def test_held_out_rows_are_drawn_by_the_seed_and_not_trained(tmp_path: Path) -> None:
    rows = [{"text": f"number {n}"} for n in range(50)]
    config = replace(write(tmp_path, *rows), eval_fraction=0.2)
    data = prepare(config, TOKENIZER, None, seed=1)
    train, held_out = set(numbered(data.train)), set(numbered(data.eval))
    assert (len(train), len(held_out)) == (data.summary.rows, data.summary.eval_rows) == (40, 10)
    assert not train & held_out
    assert train | held_out == {f"number {n}<|im_end|>" for n in range(50)}
    assert columns(prepare(config, TOKENIZER, None, seed=1)) == columns(data)
    assert set(numbered(prepare(config, TOKENIZER, None, seed=2).eval)) != held_out


def test_an_eval_file_takes_precedence_over_a_held_out_fraction(tmp_path: Path) -> None:
    evaluation = str(tmp_path / "eval.jsonl")
    write(tmp_path, {"text": "e f"}, name="eval.jsonl")
    config = replace(write(tmp_path, {"text": "a b"}, {"text": "c d"}), eval=evaluation, eval_fraction=0.5)
    data = prepare(config, TOKENIZER, None, seed=1)
    assert numbered(data.eval) == ["e f<|im_end|>"]
    assert (data.summary.rows, data.summary.eval_source, data.summary.eval_rows) == (2, evaluation, 1)
    assert data.summary.eval_sha256 != data.summary.sha256


@pytest.mark.parametrize(("rows", "fraction"), [(1, 0.1), (2, 0.9)])
def test_holding_out_everything_is_refused(tmp_path: Path, rows: int, fraction: float) -> None:
    config = replace(write(tmp_path, *[{"text": "a b"}] * rows), eval_fraction=fraction)
    with pytest.raises(DataError, match="leaves none to train on"):
        prepare(config, TOKENIZER, None, seed=1)


def test_max_rows_uses_only_the_first_rows(tmp_path: Path) -> None:
    config = replace(write(tmp_path, *({"text": f"number {n}"} for n in range(9))), max_rows=2)
    data = prepare(config, TOKENIZER, None, seed=1)
    assert numbered(data.train) == ["number 0<|im_end|>", "number 1<|im_end|>"]


def test_params_identify_the_data_and_omit_unknown_values(tmp_path: Path) -> None:
    params = prepare(write(tmp_path, {"text": "a b"}), TOKENIZER, None, seed=1).summary.as_params()
    assert {"source", "shape", "rows", "tokens", "sha256"} <= params.keys()
    assert "eval_source" not in params


def test_chats_need_a_chat_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path="demo"))
    tokenizer.chat_template = None
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for row in ({"messages": messages}, {"prompt": messages[:1], "completion": messages[1:]}):
        with pytest.raises(
            DataError, match=r"no chat template: give one as a Jinja file with model\.chat_template"
        ):
            prepare(write(tmp_path, row), tokenizer, None, seed=1)
    assert prepare(write(tmp_path, {"text": "a b"}), tokenizer, None, seed=1).summary.rows == 1


def test_thousands_of_rows_are_prepared_within_seconds(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    path.write_text(demo.data_file("train").read_text() * 10)
    start = time.process_time()
    prepare(DataConfig(train=str(path)), TOKENIZER, 256, seed=1)
    assert time.process_time() - start < 30  # 1.3 s on a core of 2025


@pytest.mark.parametrize("template", [OPENS_REASONING, EMPTY_REASONING])
def test_a_prompt_that_opens_a_block_of_reasoning_hides_no_answer(tmp_path: Path, template: str) -> None:
    row = {"messages": chat("a", "b", "c", "<d")}
    using = tokenizer(template)
    rows = prepare(write(tmp_path, row), using, None, seed=1).train
    words = [using.decode([token for token in each["labels"] if token != IGNORED]) for each in rows]
    # The prompt opens a block of reasoning, so the end of an empty block comes first.
    assert words == ["\n</think>\n\nb<|im_end|>", "\n</think>\n\n<d<|im_end|>"]


def test_an_answer_before_a_final_user_message_is_trained_like_a_last_answer(tmp_path: Path) -> None:
    row = {"messages": chat("a", "b", "c")}
    seen, words = seen_and_trained(tmp_path, row, tokenizer(LAST_WITH_REASONING))
    assert words == "<think>\n\n</think>\n\nb<|im_end|>"
    assert seen.endswith(words)  # what follows is not trained, so it is not computed either
    seen, _ = seen_and_trained(tmp_path, row, tokenizer(LAST_WITH_REASONING), "all")
    assert seen.endswith("user\nc<|im_end|>\n")


@pytest.mark.parametrize(("prefix", "suffix"), [("<s>", ""), ("<s>", "</s>"), ("</s>", "</s>")])
def test_a_text_that_begins_with_bos_gets_no_second_one(tmp_path: Path, prefix: str, suffix: str) -> None:
    using = adding(prefix, suffix)
    expected = f"{prefix}how so{suffix}", f"how so{suffix}"
    for text in ("how so", f"{prefix}how so"):
        assert seen_and_trained(tmp_path, {"text": text}, using) == expected
    row = {"prompt": f"{prefix}how", "completion": " so"}
    assert seen_and_trained(tmp_path, row, using) == (expected[0], f" so{suffix}")


def test_an_end_token_that_is_also_the_bos_token_stays_in_place(tmp_path: Path) -> None:
    row = {"prompt": "", "completion": "</s>"}
    assert seen_and_trained(tmp_path, row, adding("</s>", "</s>")) == ("</s></s>", "</s>")


def test_truncated_rows_cause_no_length_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Logs
) -> None:
    config = write(tmp_path, {"text": "a b " * 1000})
    assert prepare(config, load_tokenizer(ModelConfig(path="demo")), 64, seed=1).summary.longest == 64
    assert "maximum sequence length" not in capfd.readouterr().err + caplog.text


def test_a_tokenizer_without_offsets_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(TOKENIZER), "is_fast", False)
    with pytest.raises(DataError, match=r"slow kind.*use_fast=True"):
        prepare(write(tmp_path, {"text": "a b"}), TOKENIZER, None, seed=1)


def test_eval_rows_that_are_truncated_or_dropped_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "one ", "completion": "two"}, {"prompt": "one ", "completion": "two " * 40}]
    rows.append({"prompt": "one " * 40, "completion": "two"})
    for name, some in (("train", rows[:1]), ("eval", rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    config = DataConfig(train=f"{tmp_path}/train.jsonl", eval=f"{tmp_path}/eval.jsonl")
    summary = prepare(config, TOKENIZER, 16, 1).summary
    assert (summary.eval_rows, summary.eval_truncated, summary.eval_dropped) == (2, 2, 1)
    assert "eval 2 rows (2 cut, 1 left out: too long for training.max_length)" in summary.line()
    assert summary.as_params()["eval_truncated"] == 2
