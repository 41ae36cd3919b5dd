"""Conversations as written by a chat template.

The template receives canonical messages (`reading.messages`) in the form that it supports (`dialect`). What
it cannot express is refused, or returned as a remark: a clause without the row.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from fmstune.data.columns import TEMPLATE_KWARGS
from fmstune.data.rendering.dialect import Dialect, Given, as_parts, probe_dialect
from fmstune.data.rendering.fitting import (
    JOINED,
    first_speaker,
    neighbours_joined,
    system_joined,
    without_tags,
)
from fmstune.data.rendering.tool_words import ToolWords
from fmstune.data.rendering.turns import Turns
from fmstune.data.rendering.variables import in_source, variables_of, why_not_set
from fmstune.data.rows.messages import ROLES, Message
from fmstune.errors import DataError
from fmstune.text import first_line

UNKNOWN_FIELD = "the field `{}` of messages is not used: the chat template does not write it"
UNKNOWN_VARIABLE = "the variable `{}` of `chat_template_kwargs` is not used: {}"
_AS_SYSTEM = "a developer's message is passed as a system message: the chat template does not know developers"
_SYSTEM_JOINED = "a system message is joined to the question after it: the chat template has no place for it"
_TAGGED = "the tags around results of tools are left out: the chat template writes its own"
_MOST_WRITERS = 64
_ASKED = "an empty question is added before an assistant who starts: the chat template needs a question first"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation that fits the template, and what had to be changed for that."""

    messages: tuple[Message, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class ChatWriter:
    """Write conversations with a tokenizer's chat template.

    `keep_reasoning` writes reasoning that the template leaves out, as its family does; `strict` refuses
    conversations that would have to be changed to fit. `variables` are values for the template's variables.
    """

    tokenizer: PreTrainedTokenizerBase
    keep_reasoning: bool = False
    strict: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def dialect(self) -> Dialect:
        """What the template supports; determined at the first conversation."""
        return probe_dialect(self.tokenizer, self.variables)

    def for_row(self, row: Mapping[str, Any], place: str) -> tuple[Self, tuple[str, ...]]:
        """The writer of a row, which may set variables of the template; and remarks on those that the
        template does not read. Raises `DataError` for a value that a template cannot have."""
        values: Mapping[str, Any] = row.get(TEMPLATE_KWARGS) or {}
        if not values:
            return self, ()
        known = self._known
        remarks = tuple(
            UNKNOWN_VARIABLE.format(name, why_not_set(name)) for name in values if name not in known
        )
        used = {name: value for name, value in values.items() if name in known}
        if not used:
            return self, remarks
        try:
            key = in_source(used)
        except DataError as error:
            raise DataError(f"{place}: `{TEMPLATE_KWARGS}`: {error}.") from None
        if key not in self._for_rows:
            if len(self._for_rows) >= _MOST_WRITERS:
                self._for_rows.clear()
            self._for_rows[key] = replace(self, variables=used)
        return self._for_rows[key], remarks

    @functools.cached_property
    def _for_rows(self) -> dict[str, Self]:
        """The writers of rows that set variables, by their values."""
        return {}

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        return variables_of(self.tokenizer.chat_template)

    @functools.cached_property
    def own_words(self) -> str:
        """What the template may write that is of no message: its own words, and who speaks."""
        return "\0".join([self._source(), *ROLES, *filter(_is_text, self.variables.values())])

    @functools.cached_property
    def tool_words(self) -> ToolWords:
        """What it does not write of tools."""

        def write(tool: Any) -> str:
            return self.whole([{"role": "user", "content": "q"}], tool and [tool], "", prompt=True)

        return ToolWords(write)

    def fitted(self, messages: Sequence[Message], tools: Any, place: str) -> Fitted:
        """The conversation with roles that the template knows. Raises `DataError`, if `strict`."""
        dialect = self.dialect
        made, remarks = list(messages), []
        if not dialect.developer and any(message["role"] == "developer" for message in made):
            made = [m | {"role": "system"} if m["role"] == "developer" else m for m in made]
            if not dialect.system:
                remarks.append(_SYSTEM_JOINED)
            else:
                remarks.append(_AS_SYSTEM)
        if not dialect.system and any(message["role"] == "system" for message in made):
            made = system_joined(made)
            remarks.append(_SYSTEM_JOINED)
        asked_first = dialect.asked_first_with_tools if tools else dialect.asked_first
        if asked_first and made and first_speaker(made) == "assistant":
            at = next(i for i, message in enumerate(made) if message["role"] == "assistant")
            made.insert(at, {"role": "user", "content": ""})
            remarks.append(_ASKED)
        if dialect.alternates:
            made, joined = neighbours_joined(made, place)
            remarks += [JOINED[role] for role in joined]
        remarks = list(dict.fromkeys(remarks))
        if remarks and self.strict:
            raise DataError(f"{place}: {remarks[0]}; --strict-chat refuses that.")
        if dialect.around_results is not None:
            made, tagged = without_tags(made, *dialect.around_results)
            remarks += [_TAGGED] * tagged
        remarks += [UNKNOWN_FIELD.format(name) for name in self._not_written(made, tools, place)]
        remarks += [lost for tool in tools or () if dialect.tools for lost in self.tool_words.lost(tool)]
        return Fitted(tuple(made), tuple(remarks))

    def _not_written(self, messages: Sequence[Message], tools: Any, place: str) -> list[str]:
        """The fields of messages, other than those that all templates know, that do not affect what the
        template writes. A field whose name it does not contain, as `x.name` or in quotation marks, cannot
        affect it."""
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
                    break  # the field is needed, or the conversation is refused when rendered
                if same:
                    found.append(name)
                    break
        return found

    def require_words(self, messages: Sequence[Message], tools: Any, place: str) -> None:
        """Raise `DataError` for tools, calls and results that the template does not support."""
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
                    f"{place}: the model's chat template does not support {what}; set one that does: "
                    "model.chat_template = chatml, or a Jinja file."
                )
        self._require_calls(messages, tools, place)
        if not dialect.answers:
            text = self.whole(messages, tools, place)
            if not any(message["content"] in text for message in messages if message["role"] == "assistant"):
                raise DataError(
                    f"{place}: the model's chat template does not write what the assistant says; set another "
                    "one: model.chat_template = chatml, or a Jinja file."
                )

    def _require_calls(self, messages: Sequence[Message], tools: Any, place: str) -> None:
        """Raise `DataError` if the template drops one of several calls: it then writes the same without it.
        Names and arguments do not show it, as calls of one function have them in common."""
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
            if not calls or (len(calls) == 1 and not message["content"].strip()):
                continue
            text = self.whole(messages[: number + 1], tools, place)
            for left_out in range(len(calls)):
                fewer = [*calls[:left_out], *calls[left_out + 1 :]]
                try:
                    without = self.whole([*messages[:number], message | {"tool_calls": fewer}], tools, place)
                except DataError:
                    continue  # it refuses without the call, so it does not drop it
                if without == text and len(calls) == 1:
                    raise DataError(
                        f"{place}: the model's chat template leaves out the call of a message that also has "
                        "text; put them into two messages, or set another template (model.chat_template)."
                    )
                if without == text:
                    raise DataError(
                        f"{place}: the model's chat template leaves out call {left_out + 1} of the "
                        f"{len(calls)} that one message makes; put each call into its own message, "
                        "followed by its result, or set another template (model.chat_template)."
                    )

    def whole(self, messages: Sequence[Message], tools: Any, place: str, *, prompt: bool = False) -> str:
        """A fitted conversation as rendered by the template; `prompt` adds the generation prompt.

        Raises `DataError` with the template's objection.
        """
        known = self._turns.turn(messages, prompt=prompt) if not tools else None
        if known is not None:
            return known
        history = len(messages) - (not prompt)
        given = [self.given(message, history=number < history) for number, message in enumerate(messages)]
        try:
            return self._rendered(given, prompt, tools)
        except Exception as error:  # a template may raise anything, like those that insist on an order
            reason = first_line(error)
            if self.dialect.needs_tools and not tools:
                reason = f"it requires tools ({reason})"
            raise DataError(
                f"{place}: the model's chat template refuses this conversation: {reason}"
            ) from None

    def begin(self, messages: Sequence[Message], tools: Any) -> None:
        """Render a fitted conversation once, for all of its turns that are requested next, if the template
        allows that."""
        # An answer with reasoning in its text is passed in another form if it is the last.
        if not tools and not any("inline" in message for message in messages):
            self._turns.begin(messages, [self.given(message) for message in messages])

    @functools.cached_property
    def _turns(self) -> Turns:
        return Turns(self.tokenizer, self._rendered, self.variables)

    def _rendered(self, given: Sequence[Given], prompt: bool, tools: Any = None) -> str:
        text = self.tokenizer.apply_chat_template(
            given, tools=tools or None, tokenize=False, add_generation_prompt=prompt, **self.variables
        )
        return str(text)

    def given(self, message: Message, *, history: bool = False) -> Given:
        """A canonical message in the form that the template supports. An answer in the history is passed as
        written, which R1's template cuts at `</think>`, with the blank lines after it."""
        dialect = self.dialect
        given: Given = {"role": message["role"], "content": message["content"]}
        calls = message.get("tool_calls")
        key = dialect.reasoning_of_calls if calls else dialect.reasoning
        if message.get("reasoning_content"):
            if key is not None:
                given[key] = message["reasoning_content"]
            elif (
                "inline" in message
                and not self._in_other_words()
                and not (dialect.opened and (calls or not history))
            ):
                given["content"] = message["inline"]
        elif "inline" in message and dialect.blank and not dialect.opened and not self._in_other_words():
            given["content"] = message["inline"]  # an empty block, common in answers without any
        if calls and dialect.calls is not None:
            given["tool_calls"] = [_call(call, as_text=dialect.calls.text) for call in calls]
            if not given["content"] and dialect.calls.content != "empty":
                del given["content"]
                given |= {"content": None} if dialect.calls.content == "none" else {}
        given |= {name: message[name] for name in ("name", "tool_call_id") if name in message}
        given |= message.get("extra", {})
        return as_parts(given) if dialect.parts else given

    def _source(self) -> str:
        return str(self.tokenizer.chat_template)

    def _in_other_words(self) -> bool:
        """Whether reasoning is kept, and this family uses other tags than <think> and </think>."""
        return self.keep_reasoning and not self.dialect.thinking[0].startswith("<think>")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


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
