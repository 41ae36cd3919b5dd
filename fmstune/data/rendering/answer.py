"""Each answer as the model will have to generate it.

An answer is the text after the template's own prompt for everything before it, up to and including the mark
that ends it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fmstune.data.rendering.conversation import ChatWriter
from fmstune.data.rendering.endings import Ending
from fmstune.data.rendering.thinking import (
    THINKING,
    after_block,
    closed_by,
    in_opened_block,
    opened_by,
    with_one_block,
)
from fmstune.data.rows.messages import Message
from fmstune.errors import DataError
from fmstune.transformers_compat import render_chats

LOST_REASONING = (
    "reasoning is not trained: the chat template leaves it out (data.reasoning = keep writes it anyway)"
)
NO_REASONING = (
    "answers without reasoning get an empty reasoning block, because the prompt of the chat template opens "
    "one"
)
NO_END = "the chat template does not mark the end of an answer, so the model does not learn to stop"

_CLOSINGS = tuple(closes.strip() for _, _, closes in THINKING)


@dataclass(frozen=True, slots=True)
class Written:
    """An answer in its context: `text` starts with the `prompt`, which ends at `start`; the answer is the
    text from there to `end`."""

    prompt: str
    text: str
    start: int
    end: int
    mark: str
    """The mark that ends it, "" if the template writes none."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writer(ChatWriter):
    """Write answers after the prompts of a chat template."""

    def answer(self, earlier: Sequence[Message], message: Message, tools: Any, place: str) -> Written:
        """Render an answer after the earlier messages. Raises `DataError`."""
        text = self.whole([*earlier, message], tools, place)
        prompt = self._prompt(earlier, message, text, tools, place)
        reasoning = message.get("reasoning_content", "").strip()
        remarks: list[str] = []
        if not reasoning and text.startswith(prompt):  # as nearly all
            return self._finished(prompt, text, message, remarks)
        opened, closed = opened_by(prompt, self.dialect.opened), closed_by(prompt)
        base = prompt.removesuffix(opened or closed)
        opens, closes = self.dialect.thinking
        left_out = bool(reasoning) and self.keep_reasoning
        if text.startswith(prompt):
            start = len(prompt)
            text = prompt + with_one_block(text[start:])
            left_out = left_out and not _reasons(text, message, start)
            shut = "" if closed else next(filter(prompt.endswith, _CLOSINGS), "")
            if left_out and shut:
                # The prompt closes a block that it never opens: DeepSeek V3.1, for answers without reasoning.
                opens = next(o.strip() for o, _, c in THINKING if c.strip() == shut)
                prompt, text = prompt.removesuffix(shut) + opens, text[start:]
                text = prompt + reasoning + shut + text
            elif left_out and closed:
                prompt, text = base, base + opens + reasoning + closes + text[start:]
            elif left_out:
                block = ("" if opened else opens) + reasoning + closes
                text = prompt + block + after_block(text[start:], closes)
        elif opened and text.startswith(base):
            # The prompt opens a reasoning block, and the template writes no reasoning into the answer:
            # DeepSeek's removes it, Nemotron's writes `<think></think>` if there is none.
            text = prompt + in_opened_block(text[len(base) :], reasoning, opens, closes)
            if not reasoning and "inline" not in message:
                remarks.append(NO_REASONING)
        elif closed and reasoning:
            # The prompt is for an answer without reasoning (small Qwen3.5), and this one has some.
            if not self.keep_reasoning or not text.startswith(base):
                silent = {k: v for k, v in message.items() if k not in ("reasoning_content", "inline")}
                written = self.answer(earlier, silent, tools, place)
                return replace(written, remarks=(*written.remarks, LOST_REASONING))
            prompt, rest = base, text[len(base) :]
            if _reasons(text, message, len(base)):
                text = base + with_one_block(rest, closed)
            else:
                text = base + opens + reasoning + closes + after_block(rest, closed)
        elif closed and text.startswith(base):
            # Only the prompt has the empty block: Gemma 4, DeepSeek V3.2.
            text = prompt + after_block(text[len(base) :], closed)
        else:
            return self._behind_its_prompt(earlier, message, prompt, tools, place)
        return self._finished(prompt, text, message, remarks)

    def _finished(self, prompt: str, text: str, message: Message, remarks: list[str]) -> Written:
        """The answer that follows its prompt, up to its end."""
        reasoning = message.get("reasoning_content", "").strip()
        start = len(prompt)
        if reasoning and LOST_REASONING not in remarks and not _reasons(text, message, start):
            remarks = [*remarks, LOST_REASONING]
        ending = self.dialect.ending_of_calls if message.get("tool_calls") else self.dialect.ending
        text, end = _ended(text, start, ending)
        remarks = remarks if ending.mark else [*remarks, NO_END]
        return Written(prompt, text, start, end, ending.mark.strip(), tuple(remarks))

    def ends(self) -> tuple[str, ...]:
        """The end marks of answers that are single tokens of the tokenizer."""
        found = []
        own = {*self.tokenizer.added_tokens_decoder, self.tokenizer.eos_token_id}
        for ending in (self.dialect.ending, self.dialect.ending_of_calls):
            ids = self.tokenizer(ending.mark, add_special_tokens=False)["input_ids"] if ending.mark else []
            if ids and ids[-1] in own:
                found.append(str(self.tokenizer.convert_ids_to_tokens(ids[-1])))
        return tuple(dict.fromkeys(found))

    def textual_ends(self) -> tuple[str, ...]:
        """The end marks of answers that are not tokens of the tokenizer: it has the chat template of another
        family."""
        ends = (self.dialect.ending, self.dialect.ending_of_calls)
        marks = (ending.mark.strip() for ending in ends)
        known = self.ends()
        return tuple(dict.fromkeys(mark for mark in marks if mark and not mark.endswith(known)))

    def _behind_its_prompt(
        self, earlier: Sequence[Message], message: Message, prompt: str, tools: Any, place: str
    ) -> Written:
        """An answer whose own rendering does not start with the prompt, since the template writes the
        earlier messages differently once it is there: gpt-oss drops the reasoning of calls, Gemma 4 joins
        turns, Mistral puts the system message before the last question. The model is given the prompt, so
        the answer is placed after it, as the template renders it after fewer earlier messages. Raises
        `DataError` if no such rendering continues a prompt."""
        for less in _less(earlier):
            try:
                alone = self.answer(less, message, tools, place)
            except DataError:
                continue  # it may refuse this one, and accept the next
            if opened_by(prompt) != opened_by(alone.prompt):
                continue  # the model would have to close the block first
            moved = len(prompt) - alone.start
            text = prompt + alone.text[alone.start :]
            return replace(alone, prompt=prompt, text=text, start=len(prompt), end=alone.end + moved)
        text = self.whole([*earlier, message], tools, place)
        marked = self._marked([*earlier, message], tools, text)
        answer = None if marked is None else text[marked:]
        if answer is None:
            answer = _behind_blanks(prompt, text, message["content"])
        if answer is None and earlier:
            answer = _behind_words(prompt, text, earlier[-1]["content"].strip())
        if answer is not None:
            reasoning = message.get("reasoning_content", "").strip()
            if reasoning and self.keep_reasoning and not _reasons(answer, message, 0):
                opens, closes = self.dialect.thinking
                opens = "" if opened_by(prompt, self.dialect.opened) else opens
                answer = opens + reasoning + closes + after_block(answer, closes)
            return self._finished(prompt, prompt + answer, message, [])
        raise DataError(
            f"{place}: this chat template's rendering of an answer does not continue its own prompt "
            "(add_generation_prompt), so the expected output is unknown; train on all text "
            '(data.train_on = "all"), or set another template (model.chat_template).'
        )

    def _prompt(self, earlier: Sequence[Message], message: Message, text: str, tools: Any, place: str) -> str:
        """The template's generation prompt. For an answer without earlier messages, for which few templates
        write one, what the answer's own rendering shows of it."""
        if any(message["role"] not in ("system", "developer") for message in earlier):
            return self.whole(earlier, tools, place, prompt=True)
        try:
            if earlier:
                return self.whole(earlier, tools, place, prompt=True)
        except DataError:
            pass  # like Qwen3.5's: there is no question yet
        opening = self.dialect.prompt.removesuffix(self.dialect.opened)
        for blanks in (0, len(opening) - len(opening.lstrip())):  # the first message may have none before it
            words = message["content"].strip()
            before = text.rpartition(words)[0] if words else text
            at = before.rfind(opening[blanks:]) if opening.strip() else -1
            if at >= 0:
                return text[:at] + self.dialect.prompt[blanks:]
        bos = str(self.tokenizer.bos_token or "")
        return text[: text.index(bos) + len(bos)] if bos and text.lstrip().startswith(bos) else ""

    def _marked(self, messages: Sequence[Message], tools: Any, text: str) -> int | None:
        """Where the template itself marks the start of the last answer, with `{% generation %}`."""
        template = self.tokenizer.get_chat_template(tools=tools)
        if "endgeneration" not in template:
            return None
        texts, spans = render_chats(
            [[self.given(message) for message in messages]],
            template,
            tools=tools,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
            **self.variables,
        )
        return int(spans[0][-1][0]) if texts[0] == text and spans[0] else None


def in_history(written: Sequence[Written], messages: Sequence[Message]) -> Iterator[tuple[int, int] | None]:
    """The positions of the answers in the text of the last one, as its template writes history: each after
    its own prompt, with its own text, up to its own mark."""
    whole = written[-1].text
    begins = [each.start if whole.startswith(each.text[: each.start]) else len(whole) for each in written]
    for number, (each, message) in enumerate(zip(written, messages, strict=True)):
        calls = message.get("tool_calls") or ()
        words = [message["content"].strip(), *(call["function"]["name"] for call in calls)]
        at = each.start
        for word in words:
            at = whole.find(word, at) + len(word) if at >= 0 and word in whole[at:] else -1
        # The mark of a later answer is not this one's, which has another one in the history (gpt-oss).
        later = min(begins[number + 1 :], default=len(whole))
        end = whole.find(each.mark, at, later) if each.mark and at >= 0 else -1
        if whole.startswith(each.text[: each.end]):
            yield each.start, each.end
        elif end >= 0 and whole.startswith(each.text[: each.start]):
            yield each.start, end + len(each.mark)
        else:
            yield None


def _reasons(text: str, message: Message, start: int) -> bool:
    """Whether an answer's reasoning is in its rendering, not counting repetitions in its other text."""
    reasoning = message["reasoning_content"].strip()
    content = message["content"].strip()
    repeated = content.count(reasoning) if text.find(content, start) >= 0 else 0
    for call in message.get("tool_calls") or ():
        repeated += json.dumps(call["function"], ensure_ascii=False).count(reasoning)
    return text.count(reasoning, start) > repeated


def _behind_blanks(prompt: str, text: str, content: str) -> str | None:
    """The answer in a text that starts with its prompt except for blanks, which some templates write
    differently in prompts (Llama 4, Alpaca); `None` for any other."""
    at = 0
    for char in "".join(prompt.split()):
        while text[at : at + 1].isspace():
            at += 1
        if text[at : at + 1] != char:
            return None
        at += 1
    answer = text[at:].lstrip()
    blanks, own = text[at : len(text) - len(answer)], content[: len(content) - len(content.lstrip())]
    return own + answer if at and blanks.endswith(own) else answer


def _behind_words(prompt: str, text: str, words: str) -> str | None:
    """The answer in a text that differs from its prompt only before the last `words` of the prompt; `None`
    for any other."""
    rest = prompt.rpartition(words)[2] if words else ""
    if not rest.strip():
        return None
    _, found, answer = text.rpartition(words + rest)
    return answer if found else None


def _ended(text: str, start: int, ending: Ending) -> tuple[str, int]:
    """The text including the answer's end mark, and the end of that mark."""
    if ending.next:
        return text + ending.mark, len(text) + len(ending.mark)
    if not ending.mark:
        return text, len(text)
    for closing in (ending.mark + ending.after, ending.mark):
        if text.endswith(closing) and len(text) - len(closing) >= start:
            return text, len(text) - len(closing) + len(ending.mark)
    return text, len(text)


def _less(earlier: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Fewer and fewer of the messages before an answer: up to the last question, the same without system
    messages, and the question only."""
    asked = [number for number, message in enumerate(earlier) if message["role"] == "user"]
    if not asked:
        return
    tried = [earlier]
    until = earlier[: asked[-1] + 1]
    spoken = [message for message in until if message["role"] not in ("system", "developer")]
    for less in (until, spoken, until[-1:]):
        if len(less) < len(tried[-1]):
            tried.append(less)
            yield less
