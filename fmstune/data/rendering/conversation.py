"""Conversations as a chat template writes them, and each answer as the model will have to write it.

An answer is what follows the template's own prompt for all that comes before it, up to and with the mark that
ends it. Canonical messages (`reading.messages`) are given to the template in the form that it takes
(`dialect`). What it has no words for is refused, or comes back as a remark: a clause without the row.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from fmstune.data.rendering.dialect import EMPTY_BLOCK, THINKING, Dialect, Ending, Given, as_parts, ask
from fmstune.data.rows.messages import Message, says_something
from fmstune.errors import DataError

LOST_REASONING = (
    "reasoning is not trained: the chat template leaves it out (data.reasoning = keep writes it all the same)"
)
NO_REASONING = (
    "an answer without reasoning is written with an empty block of it, which the chat template's prompt opens"
)
UNKNOWN_FIELD = "the field `{}` of messages is not used: the chat template does not write it"
NO_END = "the chat template writes nothing that ends an answer, so the model does not learn to stop"
_AS_SYSTEM = "a developer's message is given as a system message: the chat template knows no developer"
_SYSTEM_JOINED = "a system message is joined to the question after it: the chat template has no place for it"
_JOINED = {
    "user": "questions in a row are joined: the chat template wants questions and answers in turn",
    "assistant": "answers in a row are joined: the chat template wants questions and answers in turn",
}
_ASKED = "an empty question is put before an assistant who begins: the chat template wants a question first"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation as the template can take it, and what had to be changed for that."""

    messages: tuple[Message, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """An answer in its place: `text` begins with the `prompt`, which ends at `start`; the answer is what
    stands from there to `end`."""

    prompt: str
    text: str
    start: int
    end: int
    mark: str
    """What it ends with, "" if the template writes nothing there."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writer:
    """Writes conversations with the chat template of a tokenizer.

    `keep_reasoning` writes reasoning that the template leaves out as its family does; `strict` refuses
    conversations that would have to be changed to fit.
    """

    tokenizer: PreTrainedTokenizerBase
    keep_reasoning: bool = False
    strict: bool = False

    @functools.cached_property
    def dialect(self) -> Dialect:
        """What the template has words for; asked at the first conversation."""
        return ask(self.tokenizer)

    def fitted(self, messages: Sequence[Message], tools: Any, place: str) -> Fitted:
        """The conversation with its roles as the template knows them. Raises `DataError`, if `strict`."""
        dialect = self.dialect
        made, remarks = list(messages), []
        if not dialect.developer and any(message["role"] == "developer" for message in made):
            made = [m | {"role": "system"} if m["role"] == "developer" else m for m in made]
            if not dialect.system:
                remarks.append(_SYSTEM_JOINED)
            else:
                remarks.append(_AS_SYSTEM)
        if not dialect.system and any(message["role"] == "system" for message in made):
            made = _system_joined(made)
            remarks.append(_SYSTEM_JOINED)
        asked_first = dialect.asked_first_with_tools if tools else dialect.asked_first
        if asked_first and made and _first_speaker(made) == "assistant":
            at = next(i for i, message in enumerate(made) if message["role"] == "assistant")
            made.insert(at, {"role": "user", "content": ""})
            remarks.append(_ASKED)
        if dialect.alternates:
            made, joined = _neighbours_joined(made, place)
            remarks += [_JOINED[role] for role in joined]
        remarks = list(dict.fromkeys(remarks))
        if remarks and self.strict:
            raise DataError(f"{place}: {remarks[0]}; --strict-chat refuses that.")
        remarks += [UNKNOWN_FIELD.format(name) for name in self._not_written(made, tools, place)]
        return Fitted(tuple(made), tuple(remarks))

    def _not_written(self, messages: Sequence[Message], tools: Any, place: str) -> list[str]:
        """The fields of messages, beyond those that all templates know, that make no difference to what the
        template writes. One whose name it does not have, as `x.name` or in quotation marks, makes none."""
        own = [
            {*message.get("extra", ()), *({"name"} & message.keys() if message["role"] != "tool" else ())}
            for message in messages
        ]
        found, whole = [], ""
        for name in sorted(set().union(*own)):
            if not re.search(rf"\.\s*{re.escape(name)}(?!\w)|(['\"]){re.escape(name)}\1", self._source()):
                found.append(name)
                continue
            for at in [number for number, names in enumerate(own) if name in names]:
                without = [_without(m, name) if i == at else m for i, m in enumerate(messages)]
                try:
                    whole = whole or self.whole(messages, tools, place)
                    same = self.whole(without, tools, place) == whole
                except DataError:
                    break  # the field is needed, or the conversation is refused when it is written
                if same:
                    found.append(name)
                    break
        return found

    def require_words(self, messages: Sequence[Message], tools: Any, place: str) -> None:
        """Raises `DataError` for tools, calls and results that the template has no words for."""
        dialect = self.dialect
        calls = any(message.get("tool_calls") for message in messages)
        results = any(message["role"] == "tool" for message in messages)
        for there, known, what in (
            (bool(tools), dialect.tools, "tools"),
            (calls, dialect.calls is not None, "calls of tools"),
            (results, dialect.results, "results of tools"),
        ):
            if there and not known:
                raise DataError(
                    f"{place}: the model's chat template has no words for {what}; give one that has: "
                    "model.chat_template = chatml, or a Jinja file."
                )
        self._require_calls(messages, tools, place)

    def _require_calls(self, messages: Sequence[Message], tools: Any, place: str) -> None:
        """Raises `DataError` where the template leaves out a call of several: it writes the same without it.
        Names and arguments cannot tell, as calls of one function have them in common."""
        by_id = self.dialect.calls is not None and self.dialect.calls.by_id
        for number, message in enumerate(messages):
            calls = message.get("tool_calls") or ()
            for call in calls:
                name = call["function"]["name"]
                if by_id and name not in str(call.get("id", "")):
                    raise DataError(
                        f"{place}: the model's chat template writes a call by its `id` alone, and that of a "
                        f"call of `{name}` does not hold this name; give ids as functions.{name}:0, or "
                        "another template (model.chat_template)."
                    )
            if len(calls) < 2:
                continue
            text = self.whole(messages[: number + 1], tools, place)
            for left_out in range(len(calls)):
                fewer = [*calls[:left_out], *calls[left_out + 1 :]]
                try:
                    without = self.whole([*messages[:number], message | {"tool_calls": fewer}], tools, place)
                except DataError:
                    continue  # it minds the call's absence, so it does not leave it out
                if without == text:
                    raise DataError(
                        f"{place}: the model's chat template leaves out call {left_out + 1} of the "
                        f"{len(calls)} that one message makes; make each call in a message of its own, or "
                        "give another template (model.chat_template)."
                    )

    def whole(self, messages: Sequence[Message], tools: Any, place: str, *, prompt: bool = False) -> str:
        """A fitted conversation as the template writes it; `prompt` lets it open the answer that follows.

        Raises `DataError` with what the template has against it.
        """
        given = [self._given(message) for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                given, tools=tools or None, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template may raise what it wants, as those that insist on an order do
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise DataError(
                f"{place}: the model's chat template refuses this conversation: {reason}"
            ) from None
        return str(text)

    def answer(self, earlier: Sequence[Message], message: Message, tools: Any, place: str) -> Written:
        """An answer after the messages before it. Raises `DataError`."""
        text = self.whole([*earlier, message], tools, place)
        prompt = self._prompt(earlier, text, tools, place)
        reasoning = message.get("reasoning_content", "").strip()
        remarks: list[str] = []
        base = prompt.removesuffix(self.dialect.opened) if self.dialect.opened else prompt
        opens, closes = self.dialect.thinking
        if text.startswith(prompt):
            start = len(prompt)
            shut = next((c.strip() for _, _, c in THINKING if prompt.endswith(c.strip())), "")
            if shut and reasoning and self.keep_reasoning and not _contains(text, reasoning, start):
                # The prompt closes a block that it never opens: DeepSeek V3.1's, for answers without any.
                opens = next(o.strip() for o, _, c in THINKING if c.strip() == shut)
                prompt, text = prompt.removesuffix(shut) + opens, text[start:]
                text = prompt + reasoning + shut + text
            elif reasoning and self.keep_reasoning and not _contains(text, reasoning, start):
                block = ("" if prompt != base else opens) + reasoning + closes
                text = prompt + block + EMPTY_BLOCK.sub("", text[start:], count=1)
        elif prompt != base and text.startswith(base):
            # The prompt opens a block of reasoning, and the template writes no reasoning into the answer:
            # DeepSeek's takes it out, Nemotron's writes `<think></think>` where there is none.
            rest = text[len(base) :]
            blank = EMPTY_BLOCK.match(rest)
            text, start = prompt + reasoning + closes + (rest[blank.end() :] if blank else rest), len(prompt)
            if not reasoning:
                remarks.append(NO_REASONING)
        elif self.dialect.closed and reasoning and prompt.endswith(self.dialect.closed):
            # The prompt asks for an answer without reasoning (that of small Qwen3.5), and this one has some.
            prompt = prompt.removesuffix(self.dialect.closed)
            if not self.keep_reasoning or not text.startswith(prompt):
                silent = {k: v for k, v in message.items() if k not in ("reasoning_content", "inline")}
                written = self.answer(earlier, silent, tools, place)
                return replace(written, remarks=(*written.remarks, LOST_REASONING))
            start = len(prompt)
        else:
            return self._behind_its_prompt(earlier, message, prompt, tools, place)
        return self._finished(prompt, text, message, remarks)

    def _finished(self, prompt: str, text: str, message: Message, remarks: list[str]) -> Written:
        """An answer that follows its prompt, up to its end."""
        reasoning = message.get("reasoning_content", "").strip()
        start = len(prompt)
        if reasoning and LOST_REASONING not in remarks and not _contains(text, reasoning, start):
            remarks = [*remarks, LOST_REASONING]
        ending = self.dialect.ending_of_calls if message.get("tool_calls") else self.dialect.ending
        text, end = _ended(text, start, ending)
        remarks = remarks if ending.mark else [*remarks, NO_END]
        return Written(prompt, text, start, end, ending.mark.strip(), tuple(remarks))

    def ends(self) -> tuple[str, ...]:
        """The tokens that answers end with, those of them that are single tokens of the tokenizer."""
        found = []
        own = {*self.tokenizer.added_tokens_decoder, self.tokenizer.eos_token_id}
        for ending in (self.dialect.ending, self.dialect.ending_of_calls):
            ids = self.tokenizer(ending.mark, add_special_tokens=False)["input_ids"] if ending.mark else []
            if ids and ids[-1] in own:
                found.append(str(self.tokenizer.convert_ids_to_tokens(ids[-1])))
        return tuple(dict.fromkeys(found))

    def textual_ends(self) -> tuple[str, ...]:
        """The marks that answers end with, those of them that are no tokens of the tokenizer: it was given
        the chat template of another family."""
        ends = (self.dialect.ending, self.dialect.ending_of_calls)
        marks = (ending.mark.strip() for ending in ends)
        known = self.ends()
        return tuple(dict.fromkeys(mark for mark in marks if mark and not mark.endswith(known)))

    def _given(self, message: Message) -> Given:
        """A canonical message in the form that the template takes."""
        dialect = self.dialect
        given: Given = {"role": message["role"], "content": message["content"]}
        calls = message.get("tool_calls")
        key = dialect.reasoning_of_calls if calls else dialect.reasoning
        if message.get("reasoning_content"):
            if key is not None:
                given[key] = message["reasoning_content"]
            elif "inline" in message and not dialect.opened and not self._in_other_words():
                given["content"] = message["inline"]
        if calls and dialect.calls is not None:
            given["tool_calls"] = [_call(call, as_text=dialect.calls.text) for call in calls]
            if not given["content"] and dialect.calls.content != "empty":
                del given["content"]
                given |= {"content": None} if dialect.calls.content == "none" else {}
        given |= {name: message[name] for name in ("name", "tool_call_id") if name in message}
        given |= message.get("extra", {})
        return as_parts(given) if dialect.parts else given

    def _behind_its_prompt(
        self, earlier: Sequence[Message], message: Message, prompt: str, tools: Any, place: str
    ) -> Written:
        """An answer whose own rendering does not begin with the prompt, since the template writes what comes
        before it otherwise once it is there: gpt-oss drops the reasoning of calls, Gemma 4 joins turns,
        Mistral puts the system message before the last question. The prompt is what the model is given, so
        the answer stands behind it, in the words that the template has for it where there is less before.
        Raises `DataError` where it has none that go on from a prompt."""
        for less in _less(earlier):
            try:
                alone = self.answer(less, message, tools, place)
            except DataError:
                continue  # it may refuse this, and take the next
            moved = len(prompt) - alone.start
            text = prompt + alone.text[alone.start :]
            return replace(alone, prompt=prompt, text=text, start=len(prompt), end=alone.end + moved)
        text = self.whole([*earlier, message], tools, place)
        marked = self._marked([*earlier, message], tools, text)
        if marked is not None:
            return self._finished(prompt, prompt + text[marked:], message, [])
        raise DataError(
            f"{place}: what this chat template writes of an answer does not go on from its own prompt "
            "(add_generation_prompt), so it cannot be told what the model has to write; train on all words "
            '(data.train_on = "all"), or give another template (model.chat_template).'
        )

    def _source(self) -> str:
        return str(self.tokenizer.chat_template)

    def _in_other_words(self) -> bool:
        """Whether reasoning is kept, and this family writes it in other words than <think> and </think>."""
        return self.keep_reasoning and not self.dialect.thinking[0].startswith("<think>")

    def _prompt(self, earlier: Sequence[Message], text: str, tools: Any, place: str) -> str:
        """What the template opens an answer with; for one that nothing comes before, which few templates
        write a prompt for, as far as the answer's own rendering shows it."""
        if any(message["role"] not in ("system", "developer") for message in earlier):
            return self.whole(earlier, tools, place, prompt=True)
        try:
            if earlier:
                return self.whole(earlier, tools, place, prompt=True)
        except DataError:
            pass  # as Qwen3.5's: there is no question in it yet
        opening = self.dialect.prompt.removesuffix(self.dialect.opened)
        at = text.find(opening) if opening else -1
        return text[:at] + self.dialect.prompt if at >= 0 else ""

    def _marked(self, messages: Sequence[Message], tools: Any, text: str) -> int | None:
        """Where the template itself marks the beginning of the last answer, with `{% generation %}`."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.tokenizer.get_chat_template(tools=tools)
        if "endgeneration" not in template:
            return None
        texts, spans = render_jinja_template(
            conversations=[[self._given(message) for message in messages]],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return int(spans[0][-1][0]) if texts[0] == text and spans[0] else None


def _without(message: Message, name: str) -> Message:
    extra = {key: value for key, value in message.get("extra", {}).items() if key != name}
    kept = {key: value for key, value in message.items() if key not in (name, "extra")}
    return kept | ({"extra": extra} if extra else {})


def _call(call: Message, *, as_text: bool) -> Message:
    function = call["function"]
    arguments = function["arguments"]
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return call | {"function": function | {"arguments": arguments}}


def _contains(text: str, words: str, start: int) -> bool:
    return text.find(words, start) >= 0


def _ended(text: str, start: int, ending: Ending) -> tuple[str, int]:
    """The text with the mark of the answer's end in it, and where that ends."""
    if ending.next:
        return text + ending.mark, len(text) + len(ending.mark)
    if not ending.mark:
        return text, len(text)
    for closing in (ending.mark + ending.after, ending.mark):
        if text.endswith(closing) and len(text) - len(closing) >= start:
            return text, len(text) - len(closing) + len(ending.mark)
    return text, len(text)


def _less(earlier: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Less and less of what comes before an answer: up to the last question, that without system messages,
    and the question alone."""
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


def _first_speaker(messages: Sequence[Message]) -> str | None:
    speakers = (message["role"] for message in messages if message["role"] not in ("system", "developer"))
    return next(speakers, None)


def _system_joined(messages: Sequence[Message]) -> list[Message]:
    """The messages with each system message before the words of the question after it, as Gemma's authors do;
    what no question follows is a question of its own."""
    made: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
            continue
        if waiting and message["role"] == "user":
            message = message | {"content": "\n\n".join([*waiting, message["content"]])}
        elif waiting:
            made.append({"role": "user", "content": "\n\n".join(waiting)})
        waiting = []
        made.append(message)
    return made


def _neighbours_joined(messages: Sequence[Message], place: str) -> tuple[list[Message], list[str]]:
    """The messages with questions and answers in turn, and the roles of which some were joined."""
    made: list[Message] = []
    joined = []
    for message in messages:
        role = message["role"]
        if not made or role not in _JOINED or made[-1]["role"] != role:
            made.append(message)
            continue
        before = made[-1]
        if not says_something(before) or not says_something(message):
            made[-1] = message if says_something(message) else before
        elif before.get("weight", 1.0) != message.get("weight", 1.0):
            raise DataError(
                f"{place}: two messages in a row have different weights, and the chat template wants "
                "questions and answers in turn; put something between them, or give them one weight."
            )
        else:
            made[-1] = _one(before, message)
        joined.append(role)
    return made, joined


def _one(first: Message, second: Message) -> Message:
    """Two messages as one: their texts, one after the other, and all of their calls."""
    made = first | second
    for key in ("content", "reasoning_content"):
        texts = [each[key] for each in (first, second) if each.get(key)]
        if texts:
            made[key] = "\n\n".join(texts)
    calls = [call for each in (first, second) for call in each.get("tool_calls") or ()]
    if calls:
        made["tool_calls"] = calls
    extra = first.get("extra", {}) | second.get("extra", {})
    if extra:
        made["extra"] = extra
    # The inline form is the whole of one content; of both, it begins with the reasoning of both.
    if made.pop("inline", None) is not None:
        made["inline"] = f"<think>\n{made['reasoning_content']}\n</think>\n\n{made['content']}"
    return made
