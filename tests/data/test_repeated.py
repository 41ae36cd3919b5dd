"""An answer that repeats its prompt, or the end of it, is trained like the answer alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmstune.config.schema.tables import DataConfig, DataSource
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.errors import DataError


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


GOOD, BAD = message("assistant", "GOOD"), message("assistant", "BAD")


def learnt(path: Path, method: str, row: dict[str, Any]) -> list[Any]:
    """The row as it is rendered: its prompt, and its answers."""
    path.write_text(json.dumps(row))
    reader = Reader(DataSource(str(path)), "train", DataConfig(), BadRows(), method=method)
    found = []
    for _, read in reader:
        sides = {
            name: [(each["role"], each["content"].strip()) for each in messages]
            for name, messages in read.items()
            if name != "label"
        }
        if method == "sft":  # its rows are conversations, with a mark where the answers begin
            sides = {"messages": [*sides["prompt"], *sides["completion"]]}
        found.append(sides)
    return found


def row_of(method: str, prompt: Any, before: list[Any]) -> dict[str, Any]:
    """A row whose answers are preceded by these messages."""
    if method in ("dpo", "reward"):
        return {"prompt": prompt, "chosen": [*before, GOOD], "rejected": [*before, BAD]}
    label = {"label": True} if method == "kto" else {}
    return {"prompt": prompt, "completion": [*before, GOOD], **label}


words = st.sampled_from(("one", "two", "three"))


@st.composite
def prompts(draw: Any) -> list[dict[str, str]]:
    made = [message("system", "SYSTEM")] * draw(st.integers(0, 1))
    for _ in range(draw(st.integers(0, 2))):
        made += [message("user", draw(words)), message("assistant", draw(words))]
    return [*made, message("user", draw(words))]


@given(
    prompts(),
    st.integers(0, 5),
    st.sampled_from(("sft", "kto", "dpo", "reward")),
    st.sampled_from(("", " ", "\n")),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_prompt_is_rendered_once_wherever_the_repetition_begins(
    tmp_path: Path, prompt: list[dict[str, str]], begins: int, method: str, blank: str
) -> None:
    again = [each | {"content": blank + each["content"]} for each in prompt[begins:]]
    alone = learnt(tmp_path / "x.jsonl", method, row_of(method, prompt, []))
    if again and again[0]["role"] == "assistant" and begins:
        return  # an answer that continues its prompt
    assert learnt(tmp_path / "x.jsonl", method, row_of(method, prompt, again)) == alone
    if begins == 0:
        late = prompt[1:] if prompt[0]["role"] == "system" else prompt
        assert learnt(tmp_path / "x.jsonl", method, row_of(method, late, prompt)) == alone


@pytest.mark.parametrize("method", ["sft", "kto", "dpo", "reward"])
@pytest.mark.parametrize("prompt", ["one", " one\n", ""])
def test_a_plain_text_prompt_may_be_repeated_as_messages(tmp_path: Path, method: str, prompt: str) -> None:
    alone = learnt(tmp_path / "x.jsonl", method, row_of(method, [message("user", prompt or "one")], []))
    found = learnt(tmp_path / "x.jsonl", method, row_of(method, prompt, [message("user", "one")]))
    assert found == alone


@pytest.mark.parametrize("method", ["sft", "kto", "dpo", "reward"])
def test_an_answer_that_repeats_the_question_after_other_text_is_refused(tmp_path: Path, method: str) -> None:
    prompt = [message("system", "OTHER"), message("user", "one")]
    row = row_of(method, prompt, [message("system", "SYSTEM"), message("user", "one")])
    with pytest.raises(DataError, match="repeats the question of `prompt`"):
        learnt(tmp_path / "x.jsonl", method, row)


@pytest.mark.parametrize("method", ["sft", "kto", "dpo", "reward"])
def test_an_answer_of_several_turns_keeps_a_repeated_question(tmp_path: Path, method: str) -> None:
    asked = [message("user", "one")]
    [sides] = learnt(tmp_path / "x.jsonl", method, row_of(method, asked, [BAD, *asked]))
    assert str(sides).count("'one'") >= 2
