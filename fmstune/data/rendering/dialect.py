"""What a chat template supports, and in which form: found by probing it once.

Templates differ in how they treat a system message, a call's arguments, an answer's reasoning, and in where
an answer ends; most of them silently drop what they do not support. So each one renders small conversations
of known words, and the output shows which form it needs. Nothing here knows a template by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from fmstune.data.rendering.endings import Ending, Turn, find_ending, find_ending_of_calls
from fmstune.data.rendering.thinking import BLANK, EMPTY_BLOCK, THINKING, closed_by, opened_by

Given = dict[str, Any]
"""A message in the form that a template takes."""

QUESTION, ANSWER, SYSTEM, REASON = "qzquestion", "qzanswer", "qzsystem", "qzreason"
_NEXT, _TOOL, _KEY, _VALUE, _RESULT = "qznext", "qztool", "qzkey", "qzvalue", "qzresult"
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TAGGED = re.compile(rf"(<[^<>\s/]+>)\s*{_RESULT}\s*(</[^<>\s]+>)")


@dataclass(frozen=True, slots=True)
class CallForm:
    """How to pass a tool call: its arguments as text or as an object, and the content of a message without
    any as "", as None, or not at all."""

    text: bool
    content: Literal["empty", "none", "absent"]
    by_id: bool = False
    """Whether only the call's id names the function."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a chat template supports."""

    parts: bool
    """Whether contents are lists of parts."""
    system: bool
    developer: bool
    alternates: bool
    """Whether questions and answers must alternate."""
    asked_first: bool
    asked_first_with_tools: bool
    """Whether a question must come first; some templates write tools into the first message (Llama 3.1)."""
    tools: bool
    calls: CallForm | None
    results: bool
    around_results: tuple[str, str] | None
    """The tags around a result, like `<tool_response>` and `</tool_response>`."""
    reasoning: str | None
    """The field for an answer's reasoning, if the template writes any."""
    reasoning_of_calls: str | None
    ending: Ending
    ending_of_calls: Ending
    prompt: str
    """The generation prompt (`add_generation_prompt`), with what the template always writes for the next
    answer."""
    opened: str
    """The part of it that opens a reasoning block."""
    thinking: tuple[str, str]
    """The tags that open and close a reasoning block."""
    blank: bool
    """Whether an empty block before an answer's text is written unchanged."""
    needs_tools: bool
    """Whether conversations without tools are refused."""
    answers: bool
    """Whether the text of an answer is written."""


class _Probe:
    """Probe a template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> None:
        self._tokenizer, self._variables = tokenizer, variables
        self.bos = str(tokenizer.bos_token)
        self.parts = False
        self.always: list[Given] | None = None
        """Tools for conversations that need none, if the template refuses those (Hermes 2 Pro)."""

    def write(
        self, messages: Sequence[Given], *, tools: list[Given] | None = None, prompt: bool = False
    ) -> str:
        """The rendering, or "" if the conversation is refused."""
        given = [as_parts(message) for message in messages] if self.parts else list(messages)
        try:
            text = self._tokenizer.apply_chat_template(
                given,
                tools=tools or self.always,
                tokenize=False,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except Exception:  # a template may raise anything, and whether it does is the question
            return ""
        return str(text)


def as_parts(message: Given) -> Given:
    """The message with its content as a list of one part, as templates of vision models need it."""
    content = message.get("content")
    return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def probe_dialect(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> Dialect:
    """Determine the dialect of a tokenizer's chat template with these values for its variables, with about
    thirty renderings."""
    probe = _Probe(tokenizer, variables)
    user, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
    asked = {"role": "user", "content": _NEXT}
    system, developer = ({"role": role, "content": SYSTEM} for role in ("system", "developer"))
    if not probe.write([user, answer]) and probe.write([user, answer], tools=_TOOLS):
        probe.always = _TOOLS
    if ANSWER not in probe.write([user, answer]):
        probe.parts = True
        probe.parts = ANSWER in probe.write([user, answer])
    calls, with_tools = _calls(probe, user)
    called = _called(calls) if calls else None
    opening = probe.write([user], prompt=True)
    shared = probe.write([user])
    if not opening.startswith(shared):  # Phi-3's ends everything but prompts with the end of text
        shared = shared.removesuffix(str(tokenizer.eos_token))
    prompt = opening[len(shared) :] if opening.startswith(shared) else ""
    ending, header = _ending(probe, user, answer, asked, str(tokenizer.eos_token))
    prompt = header + prompt
    key = _reasoning_key(probe, [user], answer)
    thinking, opened = _thinking(probe, tokenizer, prompt, [user], answer, key)
    answered = [
        probe.write([user, before, _OUTCOME], tools=with_tools) for before in (called, answer) if before
    ]
    return Dialect(
        parts=probe.parts,
        system=_has_place(probe, system, user, answer),
        developer=_has_place(probe, developer, user, answer),
        alternates=_NEXT in probe.write([user, answer, asked, answer])
        and _NEXT not in probe.write([user, answer, user, asked, answer]),
        asked_first=_needs_question(probe, answer, prompt.removesuffix(opened), None),
        asked_first_with_tools=_needs_question(probe, answer, prompt.removesuffix(opened), with_tools),
        tools=_TOOL in probe.write([user], tools=_TOOLS),
        calls=calls,
        results=any(_RESULT in text for text in answered),
        around_results=next(((found[1], found[2]) for found in map(_TAGGED.search, answered) if found), None),
        reasoning=key,
        reasoning_of_calls=_reasoning_key(probe, [user], called, with_tools) if called else None,
        ending=ending,
        ending_of_calls=_ending_of_calls(probe, user, called, ending, with_tools) if called else ending,
        prompt=prompt,
        opened=opened,
        thinking=thinking,
        blank=_keeps_blank(probe, user, str(tokenizer.chat_template), key),
        needs_tools=probe.always is not None,
        answers=ANSWER in probe.write([user, answer]),
    )


_TOOLS: list[Given] = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "d",
            "parameters": {
                "type": "object",
                "properties": {_KEY: {"type": "string", "description": "d"}},
                "required": [_KEY],
            },
        },
    }
]
_CALL_ID = "qz0000000"
_OUTCOME: Given = {"role": "tool", "name": _TOOL, "tool_call_id": _CALL_ID, "content": _RESULT}


def _has_place(probe: _Probe, message: Given, user: Given, answer: Given) -> bool:
    """Whether the text of a first message is written: some templates put it before the last question, and
    only if that is the last message (Mistral 7B v0.3)."""
    return SYSTEM in probe.write([message, user, answer]) or SYSTEM in probe.write(
        [message, user], prompt=True
    )


def _needs_question(probe: _Probe, answer: Given, prompt: str, tools: list[Given] | None) -> bool:
    """Whether an answer without earlier messages is refused, or written differently, or, if there is no
    prompt, follows a system message of the template's own."""
    before, found, _ = probe.write([answer], tools=tools).partition(ANSWER)
    added = "" if prompt.strip() else before.replace(probe.bos, "").strip()
    return not found or bool(added) or (prompt not in before and prompt.lstrip() not in before)


def _called(form: CallForm) -> Given:
    arguments: Any = {_KEY: _VALUE}
    if form.text:
        arguments = f'{{"{_KEY}": "{_VALUE}"}}'
    call = {"type": "function", "id": _CALL_ID, "function": {"name": _TOOL, "arguments": arguments}}
    contents: dict[str, Given] = {"empty": {"content": ""}, "none": {"content": None}, "absent": {}}
    return {"role": "assistant", **contents[form.content], "tool_calls": [call]}


def _calls(probe: _Probe, user: Given) -> tuple[CallForm | None, list[Given] | None]:
    """The form in which calls are written, and the tools that must accompany them."""
    tools = _TOOLS if probe.write([user], tools=_TOOLS) else None
    contents: tuple[Literal["empty", "none", "absent"], ...] = ("empty", "none", "absent")
    for content in contents:
        for text in (False, True):
            form = CallForm(text, content)
            before, called = probe.write([user], tools=tools), probe.write([user, _called(form)], tools=tools)
            # Some write more before a question that is the last message: their own system message.
            found = called[len(before) :] if called.startswith(before) else called.rpartition(QUESTION)[2]
            # A text that is encoded twice has escaped quotes, an object that is not encoded has Python's.
            as_meant = rf"\"{_KEY}" not in found and f"'{_KEY}':" not in found and "None" not in found
            # Kimi K2's only writes ids, which should contain the names; each row's are checked for that.
            named = _TOOL in found or _CALL_ID in found
            if named and _VALUE in found and as_meant:
                return replace(form, by_id=_TOOL not in found), tools
    return None, tools


def _reasoning_key(
    probe: _Probe, earlier: list[Given], answer: Given, tools: list[Given] | None = None
) -> str | None:
    for key in _REASONING_KEYS:
        if REASON in probe.write([*earlier, answer | {key: REASON}], tools=tools):
            return key
    return None


def _thinking(
    probe: _Probe,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    earlier: list[Given],
    answer: Given,
    key: str | None,
) -> tuple[tuple[str, str], str]:
    """The tags that open and close reasoning, and the part of the prompt that opens it."""
    source = str(tokenizer.chat_template)
    _, opens, closes = next((form for form in THINKING if form[0] in source), THINKING[0])
    opened = opened_by(prompt)
    if key is not None:
        text = probe.write([*earlier, answer | {key: REASON}])
        before, _, after = text.partition(REASON)
        between = after.partition(ANSWER)
        if between[1]:
            closes = between[0]
        # Apriel's opens it with a sentence.
        silent = probe.write([*earlier, answer]).partition(ANSWER)[0]
        full = probe.write(earlier, prompt=True)
        if not opened and before in (full, silent) and full.startswith(silent):
            opened = full[len(silent) :]
    return (opened or opens, closes), opened


def _keeps_blank(probe: _Probe, user: Given, source: str, key: str | None) -> bool:
    if key is not None and THINKING[0][0] not in source:
        return False  # a family that writes reasoning with other tags
    text = probe.write([user, {"role": "assistant", "content": BLANK + ANSWER}])
    return BLANK + ANSWER in text and len(EMPTY_BLOCK.findall(text)) == 1


def _ending(probe: _Probe, user: Given, answer: Given, asked: Given, eos: str) -> tuple[Ending, str]:
    """Where an answer ends; and what the template writes for the next one even if none is asked for."""
    before, _, alone = probe.write([user]).partition(QUESTION)
    answered, _, last = probe.write([user, answer]).partition(QUESTION)[2].partition(ANSWER)
    followed = probe.write([user, answer, asked]).rpartition(ANSWER)[2]
    ending = find_ending(last, followed, _NEXT, Turn(before, answered), eos)
    header = ending.after.removesuffix(closed_by(ending.after))
    always = header.strip() and header in answered and alone.endswith(ending.after)
    return ending, ending.after if always else ""


def _ending_of_calls(
    probe: _Probe, user: Given, called: Given, ending: Ending, tools: list[Given] | None
) -> Ending:
    last = probe.write([user, called], tools=tools)
    followed = probe.write([user, called, _OUTCOME], tools=tools)
    return find_ending_of_calls(last, followed, _VALUE, _RESULT, ending)
