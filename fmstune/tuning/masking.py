"""From a row to what the model sees: its text, and which characters of it are trained.

For chats the template's own rendering is cut into turns by rendering the beginnings of the conversation:
what an assistant's message adds to the rendering is what the model has to write. This works for any
template, whether or not it marks the assistant's words with `{% generation %}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from fmstune.tuning.errors import DataError
from fmstune.tuning.rows import Row, Shape

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text. `spans` are the (start, end) characters that are trained; `special` says whether the
    tokenizer still has to add its own special tokens (a template has written them already)."""

    text: str
    spans: tuple[tuple[int, int], ...]
    special: bool


def render(
    row: Row, shape: Shape, tokenizer: PreTrainedTokenizerBase, place: str, *, all_tokens: bool
) -> Rendered:
    """The text of a row and its trained characters. Raises `DataError` that names the row's place."""
    rendered = _render(row, shape, tokenizer, place, all_tokens=all_tokens)
    try:
        rendered.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: it holds half a character ({error.object[error.start]!a}), as texts do that were cut "
            "in the middle of an emoji; take it out."
        ) from None
    return rendered


def _render(
    row: Row, shape: Shape, tokenizer: PreTrainedTokenizerBase, place: str, *, all_tokens: bool
) -> Rendered:
    if shape == "text":
        text = with_eos(row["text"], tokenizer)
        return Rendered(text, ((0, len(text)),), special=True)
    if shape == "messages":
        conversation, prompt_length = list(row["messages"]), 0
    elif shape == "prompt/completion as messages":
        conversation, prompt_length = [*row["prompt"], *row["completion"]], len(row["prompt"])
    else:
        prompt, text = row["prompt"], with_eos(row["prompt"] + row["completion"], tokenizer)
        return Rendered(text, ((0 if all_tokens else len(prompt), len(text)),), special=True)
    tools = row.get("tools") or None
    if isinstance(tools, str):
        tools = json.loads(tools)
    if not all_tokens:
        # What follows the last answer teaches nothing, and some templates (Qwen3's) write an answer
        # differently once a question follows it.
        conversation = conversation[: _answers(conversation)[-1] + 1]
    text = apply_template(tokenizer, conversation, place, tools)
    if all_tokens:
        return Rendered(text, ((0, len(text)),), special=False)
    return Rendered(text, _assistant_spans(tokenizer, conversation, prompt_length, text, place, tools), False)


def _assistant_spans(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Message],
    first: int,
    whole: str,
    place: str,
    tools: Any,
) -> tuple[tuple[int, int], ...]:
    turns = _answers(conversation)
    trained = [index for index in turns if index >= first]
    spans = []
    prompts_tell = True
    for index in trained:
        earlier = conversation[:index]
        after = (
            whole
            if index == len(conversation) - 1
            else _until(tokenizer, conversation[: index + 1], whole, place, tools)
        )
        prompt = (
            apply_template(tokenizer, earlier, place, tools, prompt=True)
            if earlier
            else _opening(tokenizer, earlier, place, tools)
        )
        span = _between(prompt, after, whole)
        if span is None:
            prompts_tell = False
            if earlier and whole.startswith(_until(tokenizer, earlier, whole, place, tools)):
                # The prompt says more than this answer was given after: DeepSeek's and Nemotron's open a
                # block of reasoning, which an answer without any does not have.
                span = _between(_opening(tokenizer, earlier, place, tools), after, whole)
        if span is not None:
            spans.append(span)
    if prompts_tell:
        return tuple(spans)
    marked = _marked_spans(tokenizer, conversation, tools, whole)
    if marked is not None and len(marked) == len(turns):
        return marked[-len(trained) :]
    if spans:
        # Such a template writes earlier turns differently from the last one (without their reasoning,
        # say); those are not what the model will be asked to write, and are left out of the loss.
        return tuple(spans)
    raise DataError(
        f"{place}: with this chat template it cannot be told which words are the assistant's; train on all "
        'of them (data.train_on = "all"), or give another template (model.chat_template).'
    )


def _answers(conversation: Sequence[Message]) -> list[int]:
    return [index for index, message in enumerate(conversation) if message["role"] == "assistant"]


def _between(before: str | None, after: str, whole: str) -> tuple[int, int] | None:
    """The characters from the end of `before` to the end of `after`, if the whole begins with both."""
    if before is None or not after.startswith(before) or not whole.startswith(after):
        return None
    return len(before), len(after)


def _until(
    tokenizer: PreTrainedTokenizerBase, beginning: Sequence[Message], whole: str, place: str, tools: Any
) -> str:
    """The rendering of a conversation's beginning, without the end of text that some templates close every
    rendering with, and that the whole has only at its own end."""
    text = apply_template(tokenizer, beginning, place, tools)
    eos = tokenizer.eos_token
    return text if not eos or whole.startswith(text) else text.removesuffix(eos)


def _opening(
    tokenizer: PreTrainedTokenizerBase, earlier: Sequence[Message], place: str, tools: Any
) -> str | None:
    """What a template writes before the words of the assistant's next message, found by an answer whose words
    are known; `None` if it does not write them. `earlier` may be empty, which few templates can render."""
    words = "\ue000"
    answer = {"role": "assistant", "content": words}
    opening, found, _ = apply_template(tokenizer, [*earlier, answer], place, tools).partition(words)
    return opening if found else None


def _marked_spans(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message], tools: Any, whole: str
) -> tuple[tuple[int, int], ...] | None:
    """The spans that the template itself marks with `{% generation %}`; `None` if it marks none."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = tokenizer.get_chat_template(tools=tools)
    if "endgeneration" not in template:
        return None
    texts, spans = render_jinja_template(
        conversations=[list(conversation)],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    if texts[0] != whole:
        return None
    return tuple((int(start), int(end)) for start, end in spans[0])


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Message],
    place: str,
    tools: Any,
    *,
    prompt: bool = False,
) -> str:
    """A conversation as its model's template writes it; `prompt` lets it open the answer that is to follow.

    `tools` may be a text, as tables keep them, which cannot hold schemas that differ. Raises `DataError`.
    """
    if isinstance(tools, str):
        tools = json.loads(tools)
    try:
        text = tokenizer.apply_chat_template(
            list(conversation), tools=tools, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template may raise what it wants, as those that insist on an order do
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"{place}: the model's chat template refuses this conversation: {reason}") from None
    assert isinstance(text, str)
    return text


def with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with the token that ends it: what a model is to stop at, it has to have seen."""
    eos = tokenizer.eos_token
    return text if not eos or text.endswith(eos) else text + eos
