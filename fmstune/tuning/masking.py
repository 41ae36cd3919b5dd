"""From a row to what the model sees: its text, and which characters of it are trained.

For chats the template's own rendering is cut into turns by rendering the beginnings of the conversation:
what an assistant's message adds to the rendering is what the model has to write. This works for any
template, whether or not it marks the assistant's words with `{% generation %}`.
"""

from __future__ import annotations

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
    if shape == "text":
        text = _with_eos(row["text"], tokenizer)
        return Rendered(text, ((0, len(text)),), special=True)
    if shape == "messages":
        conversation, prompt_length = list(row["messages"]), 0
    elif isinstance(row["prompt"], list):
        conversation, prompt_length = [*row["prompt"], *row["completion"]], len(row["prompt"])
    else:
        prompt, text = row["prompt"], _with_eos(row["prompt"] + row["completion"], tokenizer)
        return Rendered(text, ((0 if all_tokens else len(prompt), len(text)),), special=True)
    tools = row.get("tools")
    text = _template(tokenizer, conversation, place, tools)
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
    spans = []
    unstable = 0
    turns = [i for i, message in enumerate(conversation) if message["role"] == "assistant" and i >= first]
    for index in turns:
        before = _template(tokenizer, conversation[:index], place, tools, prompt=True) if index else ""
        after = _template(tokenizer, conversation[: index + 1], place, tools)
        if index == len(conversation) - 1:
            after = whole
        if whole.startswith(before) and whole.startswith(after) and len(after) >= len(before):
            spans.append((len(before), len(after)))
        else:
            unstable += 1
    if not unstable:
        return tuple(spans)
    marked = _marked_spans(tokenizer, conversation, tools)
    if marked is not None:
        return marked
    if spans:
        # Such a template writes earlier turns differently from the last one (without their reasoning,
        # say); those are not what the model will be asked to write, and are left out of the loss.
        return tuple(spans)
    raise DataError(
        f"{place}: with this chat template it cannot be told which words are the assistant's; train on all "
        'of them (data.train_on = "all"), or give another template (model.chat_template).'
    )


def _marked_spans(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message], tools: Any
) -> tuple[tuple[int, int], ...] | None:
    """The spans that the template itself marks with `{% generation %}`; `None` if it marks none."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = tokenizer.get_chat_template(tools=tools)
    if "generation" not in template or "endgeneration" not in template:
        return None
    _, spans = render_jinja_template(
        conversations=[list(conversation)],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return tuple((int(start), int(end)) for start, end in spans[0])


def _template(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Message],
    place: str,
    tools: Any,
    *,
    prompt: bool = False,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            list(conversation), tools=tools, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template may raise what it wants, as those that insist on an order do
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"{place}: the model's chat template refuses this conversation: {reason}") from None
    assert isinstance(text, str)
    return text


def _with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with the token that ends it: what a model is to stop at, it has to have seen."""
    eos = tokenizer.eos_token
    return text if not eos or text.endswith(eos) else text + eos
