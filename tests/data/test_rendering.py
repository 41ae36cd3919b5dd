"""The trained part of a row is exactly what the model has to generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from fmstune.data.tokens.table import IGNORED
from fmstune.errors import DataError
from tests.support.rendered import adding, chat, prepared, seen_and_trained, tokenizer, trained

LLAMA_2 = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system, messages = messages[0]['content'], messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{ bos_token + '[INST] ' + ('<<SYS>>' + system + '<</SYS>> ' if loop.first and system else '')
   + message['content'].strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + message['content'].strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""

DEFAULT_SYSTEM = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
You are helpful.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""

# Like Qwen3's: the reasoning of all turns but the last is removed.
REASONING = """\
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if message['role'] == 'assistant' and not loop.last -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

# Begins with the number of messages that follow, so that no prefix of it is itself a rendering.
COUNTING = """\
{{- messages | length }} messages
{% for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else -%}
{{ message['content'] + '<|im_end|>' }}
{%- endif -%}
{%- endfor -%}"""

# Like Phi-3's: what is not a prompt ends with the end-of-text token.
CLOSED = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt else eos_token }}"""

# Strips each message, and renders nothing for an empty one.
TRIMMING = """\
{%- for message in messages if message['content'] | trim -%}
{{ message['role'] + ': ' + message['content'] | trim + '\\n' }}
{%- endfor -%}
{{ 'assistant: ' if add_generation_prompt }}"""

TOOLS = """\
{%- if tools -%}<|im_start|>tools
{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}
{%- if message.tool_calls is defined -%}
{%- for call in message.tool_calls -%}
<call>{{ call.function.name }}{{ call.function.arguments | tojson }}</call>
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""


def test_in_a_chat_each_answer_and_its_end_of_turn_token_are_trained(tmp_path: Path) -> None:
    row = {"messages": chat("2+2?", "It is 4.", "And 3+3?", "6", system="Be brief.")}
    assert trained(tmp_path, row, tokenizer()) == "It is 4.<|im_end|>6<|im_end|>"


def test_a_final_user_message_is_not_trained(tmp_path: Path) -> None:
    assert trained(tmp_path, {"messages": chat("a", "b", "c")}, tokenizer()) == "b<|im_end|>"


def test_an_assistant_that_speaks_first_is_trained_without_the_header(tmp_path: Path) -> None:
    row = {"messages": [{"role": "assistant", "content": "Welcome!"}, *chat("hi", "yes?")]}
    for template in (None, DEFAULT_SYSTEM, REASONING, CLOSED):
        assert trained(tmp_path, row, tokenizer(template, eos_token="<|im_end|>")).startswith("Welcome!")


def test_a_template_that_renders_bos_gets_no_second_one(tmp_path: Path) -> None:
    using = adding("<s>", "</s>")
    using.chat_template = LLAMA_2
    row = {"messages": chat("a", "b", "c", "d", system="S")}
    seen, words = seen_and_trained(tmp_path, row, using)
    assert seen == "<s>[INST] <<SYS>>S<</SYS>> a [/INST] b </s><s>[INST] c [/INST] d </s>"
    assert words == " b </s> d </s>"


def test_a_conversation_that_the_template_refuses_is_reported_with_its_line(tmp_path: Path) -> None:
    rows = [{"messages": chat("a", "b")}, {"messages": chat("bad", "b")}]
    template = (
        "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('not that') }}{% endif %}" + TRIMMING
    )
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, rows, tokenizer(template))
    assert f"{tmp_path}/rows.jsonl line 2: the model's chat template refuses" in str(caught.value)
    assert "not that" in str(caught.value)


def test_a_system_message_that_the_template_adds_is_seen_and_not_trained(tmp_path: Path) -> None:
    seen, words = seen_and_trained(tmp_path, {"messages": chat("a", "b")}, tokenizer(DEFAULT_SYSTEM))
    assert "You are helpful." in seen
    assert words == "b<|im_end|>"


def rows_trained(tmp_path: Path, row: Any, using: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """What is seen and what is trained of each row that a conversation becomes."""
    rows = prepared(tmp_path, [row], using).train
    return [
        (using.decode(each["input_ids"]), using.decode([t for t in each["labels"] if t != IGNORED]))
        for each in rows
    ]


def test_turns_that_the_template_shortens_become_separate_rows(tmp_path: Path) -> None:
    row = {"messages": chat("a", "<think>hm</think>\nb", "c", "<think>so</think>\nd")}
    (first, one), (second, two) = rows_trained(tmp_path, row, tokenizer(REASONING))
    assert (one, two) == ("<think>hm</think>\nb<|im_end|>", "<think>so</think>\nd<|im_end|>")
    assert "so" not in first
    assert "c" not in first.removesuffix("\n").rpartition("assistant")[2]
    assert "hm" not in second


def test_turns_that_the_template_does_not_shorten_are_trained_in_one_row(tmp_path: Path) -> None:
    row = {"messages": chat("a", "b", "c", "<think>so</think>\nd")}
    assert trained(tmp_path, row, tokenizer(REASONING)) == "b<|im_end|><think>so</think>\nd<|im_end|>"


def test_generation_markers_are_used_where_prefixes_do_not_match(tmp_path: Path) -> None:
    row = {"messages": chat("a", "b", "c", "d")}
    found = rows_trained(tmp_path, row, tokenizer(COUNTING))
    assert [words for _, words in found] == ["b<|im_end|>", "d<|im_end|>"]
    assert [seen[0] for seen, _ in found] == ["1", "3"]  # as in the prompts


def test_generation_markers_in_the_prompt_are_not_trained(tmp_path: Path) -> None:
    messages = chat("a", "b", "c", "d")
    row = {"prompt": messages[:3], "completion": messages[3:]}
    assert trained(tmp_path, row, tokenizer(COUNTING)) == "d<|im_end|>"


def test_a_row_whose_answers_cannot_be_located_is_refused(tmp_path: Path) -> None:
    template = TRIMMING.replace("'assistant: ' if", "'expert: ' if")
    with pytest.raises(DataError, match=r'line 1: .* train on all .*data\.train_on = "all"'):
        prepared(tmp_path, [{"messages": chat("a", "bcd")}], tokenizer(template))


def test_an_end_of_text_token_after_the_whole_conversation_does_not_hide_earlier_turns(
    tmp_path: Path,
) -> None:
    row = {"messages": chat("a", "b", "c", "d")}
    words = trained(tmp_path, row, tokenizer(CLOSED, eos_token="<|endoftext|>"))
    assert words == "b<|end|>d<|end|>"


def test_a_template_that_strips_messages_is_handled(tmp_path: Path) -> None:
    row = {"messages": chat("  a \n", "\n b  ", " c", "d ")}
    assert trained(tmp_path, row, tokenizer(TRIMMING)).replace(" ", "") == "b\nd\n"


def test_an_empty_answer_is_not_trained(tmp_path: Path) -> None:
    assert trained(tmp_path, {"messages": chat("a", "", "c", "d")}, tokenizer()) == "d<|im_end|>"


def test_an_answer_that_the_template_skips_is_not_trained(tmp_path: Path) -> None:
    row = {"messages": chat("a", " ", "c", "d")}
    assert trained(tmp_path, row, tokenizer(TRIMMING)).strip() == "d"


def test_an_answer_that_begins_with_newlines_is_trained_from_the_first_one(tmp_path: Path) -> None:
    assert trained(tmp_path, {"messages": chat("a", "\n\n b")}, tokenizer()) == "\n\n b<|im_end|>"


def test_tools_are_seen_and_calls_are_trained(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"in": "Graz"}}}
    messages = [
        *chat("Rain?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "yes"},
        {"role": "assistant", "content": "It rains."},
    ]
    for column in (tools, json.dumps(tools)):
        seen, words = seen_and_trained(tmp_path, {"messages": messages, "tools": column}, tokenizer(TOOLS))
        assert seen.startswith("<|im_start|>tools\nweather ")
        assert words == '<call>weather{"in": "Graz"}</call><|im_end|>It rains.<|im_end|>'


def test_with_a_prompt_of_messages_only_the_completion_is_trained(tmp_path: Path) -> None:
    messages = chat("a", "b", "c", "d", "e", "f")
    row = {"prompt": messages[:3], "completion": messages[3:]}
    assert trained(tmp_path, row, tokenizer()) == "d<|im_end|>f<|im_end|>"


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Q: what?\nA:", " yes", " yes<|im_end|>"),
        ("Q: what?\nA:", "yes<|im_end|>", "yes<|im_end|>"),
        # `Ġlamp` is one token: the space of the prompt is trained with the word, or none of it would be.
        ("Which one? The", " lamp", " lamp<|im_end|>"),
        ("Which one? The ", "lamp", " lamp<|im_end|>"),
        ("Which one? The la", "mp", " lamp<|im_end|>"),
        ("def f():\n", "    return 1", "    return 1<|im_end|>"),
        ("", "yes", "es<|im_end|>"),  # nothing precedes the first token
    ],
)
@pytest.mark.parametrize("trim", [False, True])
def test_no_part_of_a_completion_is_lost(
    tmp_path: Path, prompt: str, completion: str, expected: str, trim: bool
) -> None:
    using = tokenizer()
    if trim:
        using.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if prompt.endswith("la"):
        assert len(using(" lamp")["input_ids"]) == 1
    assert trained(tmp_path, {"prompt": prompt, "completion": completion}, using) == expected


@pytest.mark.parametrize("trim", [False, True])
def test_spaces_and_partial_characters_are_trained(tmp_path: Path, trim: bool) -> None:
    text = "if x:\n        y = '😀é'  \n\t z"
    using = adding("<s>", "</s>", trim=trim)
    assert trained(tmp_path, {"prompt": "code:", "completion": text}, using) == text + "</s>"


def test_with_all_tokens_everything_is_trained(tmp_path: Path) -> None:
    seen, words = seen_and_trained(tmp_path, {"messages": chat("a", "b")}, tokenizer(), "all")
    assert seen == "<|im_start|>" + words
    _, words = seen_and_trained(
        tmp_path, {"prompt": "how", "completion": " so"}, adding("<s>", "</s>"), "all"
    )
    assert words == "how so</s>"


@pytest.mark.parametrize(
    ("prefix", "suffix", "seen"),
    [
        ("<s>", "", "<s>how so"),
        ("", "</s>", "how so</s>"),
        ("<s>", "</s>", "<s>how so</s>"),
    ],
)
def test_a_text_gets_one_end_token_and_the_tokenizers_bos(
    tmp_path: Path, prefix: str, suffix: str, seen: str
) -> None:
    for text in {"how so", "how so" + suffix}:
        found, words = seen_and_trained(tmp_path, {"text": text}, adding(prefix, suffix))
        assert found == seen
        assert words.endswith("so" + suffix)
        assert not prefix or words == "how so" + suffix


def test_an_end_token_that_only_the_tokenizer_has_is_trained(tmp_path: Path) -> None:
    using = adding("<s>", "</s>")
    using.eos_token = None
    assert seen_and_trained(tmp_path, {"text": "how so"}, using) == ("<s>how so</s>", "how so</s>")


def test_a_tokenizer_without_an_end_token_trains_only_the_text(tmp_path: Path) -> None:
    assert trained(tmp_path, {"prompt": "a", "completion": " b"}, adding("<s>", "")) == " b"


def test_an_unpaired_surrogate_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: it contains an unpaired surrogate"):
        prepared(tmp_path, [{"text": "a b"}, {"text": "a \ud83d"}], tokenizer())


def test_the_given_rows_are_not_modified(tmp_path: Path) -> None:
    row = {"messages": chat("a", "b")}
    before = json.dumps(row)
    seen_and_trained(tmp_path, row, tokenizer())
    assert json.dumps(row) == before


words = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
said = words.filter(str.strip)  # an empty row is refused
conversations = st.lists(st.tuples(words, words), min_size=1, max_size=4).filter(
    lambda turns: any(answer.strip() for _, answer in turns)
)


@given(turns=conversations, system=st.none() | words)
@settings(max_examples=100, deadline=None)
def test_in_any_conversation_the_answers_and_their_end_tokens_are_trained(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[str, str]], system: str | None
) -> None:
    row = {"messages": chat(*(word for turn in turns for word in turn), system=system)}
    expected = "".join(answer + "<|im_end|>" for _, answer in turns if answer.strip())
    folder = tmp_path_factory.mktemp("any")
    for template in (None, DEFAULT_SYSTEM):
        assert trained(folder, row, tokenizer(template)) == expected


@given(prompt=words, completion=said)
@settings(max_examples=100, deadline=None)
def test_any_completion_is_trained_in_full(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, completion: str
) -> None:
    using = adding("<s>", "</s>", trim=len(prompt) % 2 == 0)
    found = trained(tmp_path_factory.mktemp("any"), {"prompt": prompt, "completion": completion}, using)
    ending = completion + "</s>"
    # More than the completion is trained only if a token also contains the end of the prompt.
    assert ending.encode() in found.encode() or found.endswith(ending)
    assert (prompt + ending).endswith(found.lstrip("\ufffd"))
