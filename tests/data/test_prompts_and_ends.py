"""Templates whose prompt or end is not simply what they write around an answer: each answer is still trained
after the prompt, without anything that is not its own, up to the token that ends it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fmstune.data.rendering.answer import LOST_REASONING, Writer
from fmstune.data.rendering.render import NOT_FOUND, Renderer
from fmstune.data.rendering.rendered import Rendering
from fmstune.data.rows.messages import read_messages
from fmstune.errors import DataError
from tests.support.chat_templates import tokenizer_with
from tests.support.conversations import TOOLS, Learnt, calls_of, learnt

USER, NEXT = {"role": "user", "content": "What?"}, {"role": "user", "content": "And?"}
SAYS, MORE = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
THINKS = SAYS | {"reasoning_content": "because"}
CALLS = {"role": "assistant", "content": "", "tool_calls": calls_of({"what": 7})}
RESULT = {"role": "tool", "name": "find", "tool_call_id": "c12345678", "content": "found"}

_SAID = "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<do>{{ c.function | tojson }}</do>{% endfor %}"
_TOOLS = "{% for t in tools or [] %}<tool>{{ t | tojson }}{% endfor %}"


def using(template: str) -> Any:
    found = copy.deepcopy(tokenizer_with("qwen3"))
    found.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|turn|>", "[|end|]"]})
    found.chat_template = template
    return found


def trained(template: str, *messages: dict[str, Any], tools: Any = None) -> list[str]:
    return [each.trained for each in learnt(list(messages), using(template), tools)]


def made(template: str, *messages: dict[str, Any], keep: bool = False) -> tuple[Rendering, list[Learnt]]:
    """The rendering of a conversation, and each answer in it with the text before it."""
    row = {"messages": read_messages(list(messages), "here", "messages")}
    result = Renderer(Writer(using(template), keep)).render(row, "messages", "here")
    found = [
        Learnt(part.text[: span.start], part.text[span.start : span.end])
        for part in result.parts
        for span in part.spans
    ]
    return result, found


def turns(before: str, after: str, always: str, system: str = "") -> str:
    """A template that writes `always` after any last message."""
    return (
        f"<bos>{system}{_TOOLS}{{% for m in messages %}}{before}{{{{ m.role }}}}{after}{_SAID}<|end|>"
        f"{{% endfor %}}{always}"
    )


@pytest.mark.parametrize(
    "template",
    [
        turns("<|turn|>", "<|said|>", "<|turn|>assistant<|said|>"),
        turns("<|turn|><|", "|>", "<|turn|><|assistant|>", "<|turn|><|system|>Be brief.<|end|>"),
        turns("<|", "|>", "<|assistant|>"),
    ],
)
def test_what_a_template_always_writes_after_an_answer_is_not_part_of_its_end(template: str) -> None:
    assert trained(template, USER, SAYS, NEXT, MORE)[-1].endswith("No.<|end|>")
    called = trained(template, USER, CALLS, RESULT, SAYS, tools=TOOLS)
    assert [words.endswith(("</do><|end|>", "Yes.<|end|>")) for words in called] == [True, True]
    assert Writer(using(template)).ends() == ("<|end|>",)


def test_a_call_ends_with_its_own_mark_if_its_result_is_in_the_same_turn() -> None:
    template = (
        f"{_TOOLS}{{% for m in messages %}}{{% if m.role == 'tool' %}}[{{{{ m.content }}}}]{{% else %}}"
        "{{ '<|end|>' if m.role == 'user' and not loop.first }}{{ '<|turn|>' + m.role + '\n' "
        "if m.role == 'user' or messages[loop.index0 - 1].role != 'tool' }}"
        f"{_SAID}{{% endif %}}{{% endfor %}}"
        "{{ '<|turn|>assistant\n' if add_generation_prompt and messages[-1].role != 'tool' }}"
    )
    assert trained(template, USER, CALLS, RESULT, SAYS, tools=TOOLS) == [
        '<do>{"name": "find", "arguments": {"what": 7}}</do>',
        "Yes.<|end|>",
    ]
    row = {"messages": read_messages([USER, CALLS, RESULT, SAYS], "here", "messages"), "tools": TOOLS}
    assert Renderer(Writer(using(template))).render(row, "messages", "here").remarks == ()


def test_an_answer_that_calls_ends_as_any_other_whatever_its_end_looks_like() -> None:
    for end in ("[|end|]", "(end)"):
        template = f"{_TOOLS}{{% for m in messages %}}[|{{{{ m.role }}}}|]{_SAID}{end}\n{{% endfor %}}"
        template += "{% if add_generation_prompt %}[|assistant|]{% endif %}"
        called, answered = trained(template, USER, CALLS, RESULT, SAYS, tools=TOOLS)
        assert called.endswith(f"</do>{end}")
        assert answered == f"Yes.{end}"


@pytest.mark.parametrize(
    "template",
    [
        turns("<|turn|>", "<|said|>", "<|turn|>assistant<|said|>", "<|turn|>system<|said|>Be brief.<|end|>"),
        "<bos><|turn|>assistant<|said|>\n\nI am brief.<|end|>"
        + turns("<|turn|>", "<|said|>\n\n", "<|turn|>assistant<|said|>\n").removeprefix("<bos>"),
        "\n<bos>\n{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}",
        "<bos>[SYS]Be brief.[/SYS]{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}"
        "[/INST]{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}",
        "Be brief.\n\n{% for m in messages %}{{ m.role | upper }}: {{ m.content }}<|end|>\n\n{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: \n{% endif %}",
    ],
)
def test_the_templates_own_system_message_is_no_part_of_an_answer_without_a_question(template: str) -> None:
    assert trained(template, SAYS, NEXT, MORE)[0].lstrip("\n") == "Yes.<|end|>"


def reasoned(blocks: str, prompt: str) -> str:
    """A template that writes `blocks`, with `r` for an answer's reasoning, before its text."""
    return (
        "{% for m in messages %}{% set r = m.reasoning_content or '' %}<|turn|>{{ m.role }}\n"
        f"{{% if m.role == 'assistant' %}}{blocks}{{% endif %}}{{{{ m.content }}}}<|end|>\n{{% endfor %}}"
        f"{{% if add_generation_prompt %}}<|turn|>assistant\n{prompt}{{% endif %}}"
    )


@pytest.mark.parametrize(
    ("blocks", "prompt", "silent", "thinking"),
    [
        # The template itself ends the block: GLM 4.7, Cohere.
        ("{% if r %}<think>{{ r }}{% endif %}</think>", "<think>", "</think>", "because</think>"),
        (
            "{% if r %}<think>{{ r }}</think>{% endif %}<|text|>",
            "<think>",
            "</think><|text|>",
            "because</think><|text|>",
        ),
        # The prompt has other blanks.
        (
            "{% if r %}<think>\n{{ r }}\n</think>\n\n{% endif %}",
            "<think>\n\n",
            "\n</think>\n\n",
            "because\n</think>\n\n",
        ),
        # It ends with a sentence: Apriel.
        ("{% if r %}{{ r }}\n[ANSWER]\n{% endif %}", "My steps:\n", "\n[ANSWER]\n", "because\n[ANSWER]\n"),
    ],
)
def test_a_block_that_the_prompt_opens_is_ended_once(
    blocks: str, prompt: str, silent: str, thinking: str
) -> None:
    template = reasoned(blocks, prompt)
    for message, block in ((SAYS, silent), (THINKS, thinking)):
        _, (found,) = made(template, USER, message)
        assert found.before == f"<|turn|>user\nWhat?<|end|>\n<|turn|>assistant\n{prompt}"
        assert found.trained == f"{block}Yes.<|end|>"


def test_a_block_that_only_the_prompt_after_a_result_opens_is_ended() -> None:
    template = reasoned("{% if r %}<|channel>thought\n{{ r }}\n<channel|>{% endif %}", "@").replace(
        "@", "{% if messages[-1].role == 'tool' %}<|channel>thought\n{% endif %}"
    )
    template = _TOOLS + template.replace("{{ m.content }}", _SAID)
    called, answered = learnt([USER, CALLS, RESULT, SAYS], using(template), TOOLS)
    assert called.trained.startswith("<do>")
    assert answered.before.endswith("<|turn|>assistant\n<|channel>thought\n")
    assert answered.trained == "\n<channel|>Yes.<|end|>"


@pytest.mark.parametrize(
    ("blocks", "prompt"),
    [
        ("", "<|channel>thought\n<channel|>"),
        ("", "<think>\n</think>"),
        ("</think>", "<think></think>"),
        ("", "<|START_THINKING|><|END_THINKING|>"),
    ],
)
def test_an_empty_block_that_only_the_prompt_has_is_before_the_answer(blocks: str, prompt: str) -> None:
    template = reasoned(blocks, prompt)
    _, found = made(template, USER, SAYS, NEXT, MORE)
    assert [each.trained for each in found] == ["Yes.<|end|>", "No.<|end|>"]
    assert all(each.before.endswith(f"<|turn|>assistant\n{prompt}") for each in found)
    result, (found_thinking,) = made(template, USER, THINKS)
    assert (found_thinking.trained, LOST_REASONING in result.remarks) == ("Yes.<|end|>", True)
    result, (kept,) = made(template, USER, THINKS, keep=True)
    assert kept.before.endswith("<|turn|>assistant\n")
    assert kept.trained.count("because") == 1
    assert kept.trained.endswith("Yes.<|end|>")
    assert result.remarks == ()


@pytest.mark.parametrize(
    ("blocks", "prompt", "keep"),
    [("<think></think>", "", False), ("<think></think>", "", True), ("</think>", "<think></think>", True)],
)
def test_an_answer_with_reasoning_in_its_text_has_no_empty_block_before_it(
    blocks: str, prompt: str, keep: bool
) -> None:
    said = "<think>\nbecause\n</think>\n\nYes."
    _, (found,) = made(reasoned(blocks, prompt), USER, SAYS | {"content": said}, keep=keep)
    assert found.before.endswith("<|turn|>assistant\n")
    assert found.trained == f"{said}<|end|>"


def test_with_history_as_the_template_has_it_no_answer_ends_at_the_end_of_another() -> None:
    template = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}"
        "{{ '<|return|>' if m.role == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
        "{{ '<|turn|>assistant\n' if add_generation_prompt }}"
    )
    row = {"messages": read_messages([USER, SAYS, NEXT, MORE], "here", "messages")}
    result = Renderer(Writer(using(template)), history="template").render(row, "messages", "here")
    (part,) = result.parts
    assert [part.text[span.start : span.end] for span in part.spans] == ["No.<|return|>"]
    assert result.remarks == (NOT_FOUND,)


@pytest.mark.parametrize(("content", "own"), [("Yes.", ""), ("\n Yes.", "\n ")])
def test_a_prompt_with_other_blanks_than_the_history_is_the_prompt(content: str, own: str) -> None:
    template = (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}<|end|>\n\n{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:\n{% endif %}"
    )
    found = learnt([USER, SAYS | {"content": content}, NEXT, MORE], using(template), None)
    assert [each.trained for each in found] == [f"{own}Yes.<|end|>", "No.<|end|>"]
    assert all(each.before.endswith("ASSISTANT:\n") for each in found)


def test_a_call_follows_the_prompt_that_has_the_templates_own_system_message() -> None:
    template = (
        f"<bos>{_TOOLS}{{% for m in messages %}}{{% if m.role in ('user', 'tool') %}}[INST]"
        "{{ 'Choose a tool. ' if tools and loop.last and m.role == 'user' }}{{ m.content }}[/INST]"
        f"{{% else %}}{_SAID}<|end|>{{% endif %}}{{% endfor %}}"
    )
    called, answered = learnt([USER, CALLS, RESULT, SAYS], using(template), TOOLS)
    assert called.before.endswith("[INST]Choose a tool. What?[/INST]")
    assert called.trained.startswith("<do>")
    assert called.trained.endswith("</do><|end|>")
    assert answered.trained == "Yes.<|end|>"


@pytest.mark.parametrize("first", [[], [USER | {"content": ""}]])
def test_an_answer_that_does_not_follow_its_prompt_is_refused(first: list[dict[str, str]]) -> None:
    template = reasoned("", "").replace("<|turn|>assistant\n{% endif", "<|turn|>expert\n{% endif")
    with pytest.raises(DataError, match="does not continue its own prompt"):
        trained(template, *first, SAYS, NEXT, MORE)


def test_a_template_that_needs_tools_says_so_and_has_its_system_message_and_end() -> None:
    template = "{% for t in tools %}<tool>{{ t | tojson }}{% endfor %}" + reasoned("", "").replace(
        "{{ m.content }}", _SAID
    )
    system = {"role": "system", "content": "Be brief."}
    called, answered = learnt([system, USER, CALLS, RESULT, SAYS], using(template), TOOLS)
    assert "<|turn|>system\nBe brief.<|end|>" in called.before
    assert answered.trained == "Yes.<|end|>"
    assert Writer(using(template)).ends() == ("<|end|>",)
    with pytest.raises(DataError, match="refuses this conversation: it requires tools"):
        learnt([USER, SAYS], using(template), None)


def test_an_answer_without_words_that_the_template_writes_after_a_call_is_not_trained() -> None:
    template = (
        "{% for m in messages %}{% if m.tool_calls %}<|assistant|>{% for c in m.tool_calls %}<do>"
        "{{ c.function | tojson }}</do>{% endfor %}<|end|>{% endif %}{% if m.content is defined %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    called, answered = learnt([USER, CALLS, RESULT, SAYS], using(template), None)
    assert called.trained.endswith("</do><|end|>")
    assert called.trained.count("<|end|>") == 1
    assert "</do><|end|><|assistant|><|end|><|tool|>found" in answered.before
    assert answered.trained == "Yes.<|end|>"


def test_a_call_that_the_template_leaves_out_beside_a_text_is_refused() -> None:
    template = reasoned("", "").replace(
        "{{ m.content }}", "{% if m.content %}{{ m.content }}{% else %}@{% endif %}"
    )
    template = _TOOLS + template.replace("@", _SAID)
    assert "<do>" in trained(template, USER, CALLS, tools=TOOLS)[0]
    for call in (calls_of({"what": 7}), calls_of({})):
        with pytest.raises(DataError, match="leaves out the call of a message that also has text"):
            trained(template, USER, SAYS | {"tool_calls": call}, tools=TOOLS)


def test_a_template_that_writes_no_answers_is_refused() -> None:
    with pytest.raises(DataError, match="does not write what the assistant says; set another one"):
        trained("{% for m in messages %}<|audio|>{% endfor %}{{ eos_token }}", USER, SAYS)
