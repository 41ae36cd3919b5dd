"""Preference rows: what becomes of them is reported, and so is what is wrong with one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fmstune import demo
from fmstune.delivery.journal.reader import JournalReader
from fmstune.errors import DataError
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from tests.support.preferred import PREFERENCES, build, pairs, tune, write


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("pairs.jsonl", pairs(32))
    write("eval.jsonl", pairs(8))


def test_kto_trains_on_labelled_answers_in_an_order_of_the_seed() -> None:
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


def test_kto_takes_rows_in_their_order_if_that_is_set() -> None:
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"], "label": True} for pair in pairs(8)]
    rows += [{**row, "label": False} for row in rows]
    write("labelled.jsonl", rows)
    sets = ("training.train_sampling_strategy=sequential", "data.eval=labelled.jsonl")
    trainer = build("kto", *sets, data="labelled.jsonl").trainer
    assert trainer.train_dataset["label"] == trainer.eval_dataset["label"] == [True] * 8 + [False] * 8


def test_row_counts_are_reported_and_tracked() -> None:
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
def test_rows_that_are_all_too_long_are_an_error(method: str) -> None:
    with pytest.raises(
        DataError,
        match=r"of its .* rows, none has a token to train on .* training.max_length = 2 tokens; raise",
    ):
        build(method, "training.max_length=2")


@pytest.mark.parametrize("method", PREFERENCES)
def test_a_row_that_the_chat_template_refuses_is_reported_with_its_location(method: str) -> None:
    Path("strict.jinja").write_text(
        "{% for m in messages %}{% if 'number 7 ' in m.content %}{{ raise_exception('no sevens') }}"
        "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    with pytest.raises(
        DataError,
        match=r"pairs\.jsonl line 8: the model's chat template refuses this conversation: no sevens",
    ):
        build(method, "model.chat_template=strict.jinja")


def test_a_model_without_a_chat_template_trains_on_plain_text_only() -> None:
    from transformers import AutoTokenizer

    demo.build_model(1).save_pretrained("plain")
    tokenizer = AutoTokenizer.from_pretrained(demo.model_dir())
    tokenizer.chat_template = None
    tokenizer.save_pretrained("plain")
    with pytest.raises(DataError, match="holds chats, and the model has no chat template"):
        build("dpo", "model.path=./plain")
    write("texts.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert build("dpo", "model.path=./plain", data="texts.jsonl").data.rows == 1


def test_tool_calls_reach_the_template_without_the_empty_fields_of_a_table() -> None:
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


def test_unbalanced_labels_are_reported_once_with_suggested_weights() -> None:
    rows = [{"prompt": f"a{n}", "completion": f"b{n}", "label": n == 0} for n in range(12)]
    write("unequal.jsonl", rows)
    _, shown = tune("kto", "out", "training.max_steps=1", data="unequal.jsonl", evaluation="")
    warnings = [line for line in shown.splitlines() if line.startswith("warning")]
    (said,) = [line for line in warnings if "more answers of one label than of the other" in line]
    assert "training.desirable_weight within [11, 14.7]" in said
    assert logging.getLogger("trl").propagate


def test_kto_reports_rows_that_it_compares_with_answers_to_their_own_prompt() -> None:
    rows = [{"prompt": "a", "completion": f"b{n}", "label": n % 2 == 0} for n in range(12)]
    write("alike.jsonl", rows)
    (note,) = build("kto", data="alike.jsonl").notes
    assert note.startswith("kto compares 12 of 12 rows with an answer to their own prompt")
    other = [*rows[:4], *({**row, "prompt": f"a{n}"} for n, row in enumerate(rows[:8]))]
    write("alike.jsonl", other)
    sets = ("training.train_sampling_strategy=sequential", "training.per_device_train_batch_size=8")
    assert build("kto", *sets, data="alike.jsonl").notes == ()


def test_a_prompt_that_ends_in_different_tokens_before_an_answer_is_reported() -> None:
    write("merged.jsonl", [{"prompt": "The lamp ", "chosen": "costs 9", "rejected": "is red"}])
    (note,) = build("dpo", data="merged.jsonl").notes
    assert "the prompt ends with other tokens when an answer follows" in note


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_samples_use_the_prompts_of_pairs_and_show_the_chosen_answer(method: str) -> None:
    sets = [
        "training.max_steps=1",
        "training.eval_strategy=epoch",
        "samples.rows=8",
        "samples.max_new_tokens=4",
    ]
    _, shown = tune(method, "out", *sets)
    assert "sample   What does the" in shown
    events = JournalReader(Path("out", TRACKING_DIR, JOURNAL_NAME))
    (rows,) = [event.rows for event in events if event.kind == "table"]
    answers = [row["expected"] for row in rows if row.get("expected")]
    assert answers
    assert all("euros" in answer for answer in answers)
    assert len(answers) == 8 if method == "dpo" else 0 < len(answers) < 8


@pytest.mark.parametrize("method", PREFERENCES)
def test_no_progress_bar_and_no_warning_is_printed_while_trl_tokenises(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert build(method).notes == ()
    assert capfd.readouterr() == ("", "")
