"""Text that a chat template omits is reported, even if other parts of the row contain the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from fmstune.config.schema.tables import DataConfig
from fmstune.data.prepare import prepare
from fmstune.data.rendering.answer import LOST_REASONING, Writer
from fmstune.data.rendering.render import NO_WORDS, NOT_READ, NOT_WRITTEN, Renderer
from fmstune.data.rows.messages import read_messages
from fmstune.data.tokens.labels import NO_FIRST
from tests.support.chat_templates import tokenizer_with
from tests.support.rendered import tokenizer

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Has no reasoning, like SmolLM2's."""
BLANKS = PLAIN.replace("<{{ m.role }}>", "<{{ m.role }}>\n").replace("<assistant>{%", "<assistant>\n\n{%")
"""Its prompt has another blank than its answers, as of templates that are indented."""
LAST_THINKS = PLAIN.replace(
    "{{ m.content }}",
    "{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}",
)
"""Renders only the reasoning of the last message, as many templates do."""
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}}]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | fields


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def unused_parts(
    folder: Path, row: Any, using: PreTrainedTokenizerBase, method: str = "sft", **options: Any
) -> str:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    data = prepare(DataConfig(train=str(path), cache=False, **options), using, None, seed=0, method=method)
    return "\n".join(data.summary.unused_lines())


@pytest.mark.parametrize(
    ("reasoning", "content", "fields"),
    [
        ("It is 4", "It is 4.", {}),
        ("4", "4", {}),
        ("4", "Four, 4 or 4.", {}),
    ],
)
def test_omitted_reasoning_is_reported_though_its_answer_repeats_it(
    tmp_path: Path, reasoning: str, content: str, fields: dict[str, Any]
) -> None:
    messages = [user("q"), answer(content, reasoning_content=reasoning)]
    assert LOST_REASONING in unused_parts(tmp_path, {"messages": messages}, tokenizer(PLAIN))
    pair = {"prompt": [messages[0]], "chosen": [messages[1]], "rejected": [answer("bad")]}
    assert LOST_REASONING in unused_parts(tmp_path, pair, tokenizer(PLAIN), "dpo")
    assert unused_parts(tmp_path, {"messages": messages}, tokenizer(PLAIN), reasoning="keep") == ""
    assert unused_parts(tmp_path, {"messages": messages}, tokenizer(BLANKS), reasoning="keep") == ""
    assert unused_parts(tmp_path, {"messages": messages}, tokenizer(LAST_THINKS)) == ""


def test_omitted_reasoning_is_reported_though_a_call_repeats_it(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    asks = answer("", reasoning_content="Rome", tool_calls=[call])
    result = {"role": "tool", "tool_call_id": "1", "content": "sun"}
    row = {"messages": [user("q"), asks, result, answer("Sun.")], "tools": TOOLS}
    assert LOST_REASONING in unused_parts(tmp_path, row, tokenizer_with("llama3_1"))
    assert LOST_REASONING not in unused_parts(tmp_path, row, tokenizer_with("qwen3"))


@pytest.mark.parametrize("second", ["hmm", "so: hmm, yes"])
def test_omitted_reasoning_is_reported_though_later_reasoning_repeats_it(tmp_path: Path, second: str) -> None:
    first, last = answer("a", reasoning_content="hmm"), answer("b", reasoning_content=second)
    row = {"messages": [user("q"), first, user("z"), last]}
    using = tokenizer(LAST_THINKS)
    assert NOT_WRITTEN in unused_parts(tmp_path, row, using, train_on="all")
    assert NOT_WRITTEN in unused_parts(tmp_path, row, using, history="template")
    assert unused_parts(tmp_path, row, using) == ""
    given_before = {"messages": [user("q"), first | {"weight": 0}, user("z"), last]}
    assert NOT_READ in unused_parts(tmp_path, given_before, using)


def test_omitted_text_next_to_a_call_is_reported_though_a_later_answer_repeats_it(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {}}}
    messages = [
        user("weather?"),
        answer("Let me check.", tool_calls=[call]),
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
        answer("Sun."),
        user("and now?"),
        answer("Let me check."),
    ]
    row = {"messages": messages, "tools": TOOLS}
    assert NO_WORDS.format("words of the assistant") in unused_parts(
        tmp_path, row, tokenizer_with("llama3_1")
    )
    assert unused_parts(tmp_path, row, tokenizer_with("qwen3")) == ""


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_omitted_system_messages_are_reported_though_another_one_contains_them(
    tmp_path: Path, method: str
) -> None:
    earlier = [system("Be kind."), system("Be"), user("q"), answer("a"), system("kind"), user("z")]
    row: dict[str, Any] = {"messages": [*earlier, answer("b")]}
    if method == "dpo":
        row = {"prompt": earlier, "chosen": [answer("b")], "rejected": [answer("c")]}
    assert NO_WORDS.format("words of the system") in unused_parts(
        tmp_path, row, tokenizer_with("gptoss"), method
    )
    assert unused_parts(tmp_path, row, tokenizer_with("qwen2_5"), method) == ""


def test_text_of_the_template_itself_is_not_mistaken_for_the_rows(tmp_path: Path) -> None:
    row = {"messages": [system("Be kind."), system("assistant"), user("q"), answer("a")]}
    assert NO_WORDS.format("words of the system") in unused_parts(tmp_path, row, tokenizer_with("gptoss"))


DROPS = (
    "{% for m in messages %}{% if loop.index0 not in [DROPPED] %}<{{ m.role }}>{{ m.content }}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(["yes", "yes.", "s", "user", "oh yes", "no"]), min_size=4, max_size=8),
    at=st.integers(0, 7),
)
def test_a_dropped_message_is_reported_whatever_the_others_say(
    tmp_path: Path, words: list[str], at: int
) -> None:
    words = words[: len(words) // 2 * 2]
    messages = [(answer if number % 2 else user)(each) for number, each in enumerate(words)]
    at = at % (len(words) - 1) // 2 * 2  # a question: without it, its answer would follow another prompt
    lines = unused_parts(tmp_path, {"messages": messages}, tokenizer(DROPS.replace("DROPPED", str(at))))
    assert NO_WORDS.format("words of the user") in lines
    assert unused_parts(tmp_path, {"messages": messages}, tokenizer(PLAIN)) == ""


def test_an_answer_that_forms_one_token_with_its_prompt_is_reported(tmp_path: Path) -> None:
    using = tokenizer(PLAIN)
    pair = next(token for token in sorted(using.get_vocab()) if len(token) == 2 and token.isalpha())
    row = {"prompt": pair[0], "completion": pair[1]}
    assert NO_FIRST in unused_parts(tmp_path, row, using)
    for other in ({"prompt": f"{pair[0]}\n", "completion": pair[1]}, {"text": pair}, row):
        assert NO_FIRST not in unused_parts(tmp_path, other, using, train_on="all")
        assert other is row or NO_FIRST not in unused_parts(tmp_path, other, using)


@pytest.mark.parametrize("template", ["gemma", "lfm2", "qwen3", "phi3_5"])
def test_the_fast_check_for_rendered_text_agrees_with_the_slow_one(template: str) -> None:
    few = st.text(st.sampled_from("ab. \n"), max_size=6)
    words = st.one_of(few, st.sampled_from(["user", "system", "</think> a", "<think>"]))
    turns = st.lists(words, min_size=2, max_size=6)
    using = tokenizer_with(template)

    @given(turns=turns, everything=st.booleans())
    @settings(max_examples=10, deadline=None, derandomize=True)
    def holds(turns: list[str], everything: bool) -> None:
        roles = [user, answer]
        messages = [roles[number % 2](said) for number, said in enumerate(turns)]
        found = []
        for quickly in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                if not quickly:
                    patch.setattr("fmstune.data.rendering.render.plainly_written", lambda *_: False)
                    patch.setattr("fmstune.data.rows.messages._all_plain", lambda _: [])
                renderer = Renderer(Writer(using), everything)
                row = {"messages": read_messages(messages, "here", "messages")}
                found.append(renderer.render(row, "messages", "here"))
        assert found[0] == found[1]

    holds()
