"""The special tokens that a tokenizer adds before and after a text, such as Llama's `<s>`.

A text may have them already: many published prompts start with `<s>`, and answers end with `</s>`. And a
prompt does not end with them, as its answer follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NOT_A_CHAT = (
    "the chat template is not used: `prompt` and `{0}` are texts, learnt as they are; for a chat, set "
    "data.columns = {{{1}}}"
)


def lacks_template(tokenizer: Any, prompt: str) -> bool:
    """Whether a prompt is a text that the model's chat template has not written, though there is one: it
    has none of the special tokens."""
    return bool(prompt and tokenizer.chat_template) and not any(
        token in prompt for token in tokenizer.all_special_tokens
    )


def repeated(ids: Sequence[int], added: Sequence[int]) -> tuple[int, int]:
    """How many tokens the tokenizer has added before and after a text that starts or ends with the same one.
    `added` is its mask of special tokens."""
    before = int(len(ids) > 1 and bool(added[0]) and ids[0] == ids[1])
    after = int(len(ids) > 1 + before and bool(added[-1]) and ids[-1] == ids[-2])
    return before, after


def texts_as_ids(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """The ids of texts; with `special`, the tokenizer adds its own special tokens where they are not yet."""
    encoded = tokenizer(
        list(texts),
        add_special_tokens=special,
        return_attention_mask=False,
        return_special_tokens_mask=special,
        verbose=False,
    )
    if not special:
        return [list(ids) for ids in encoded["input_ids"]]
    found = []
    for ids, added in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        before, after = repeated(ids, added)
        found.append(list(ids[before : len(ids) - after]))
    return found


def prompt_as_ids(tokenizer: Any, prompt: str, *, special: bool) -> list[int]:
    """The ids of a text that goes on: without the special tokens that the tokenizer adds after texts."""
    encoded = tokenizer(prompt, add_special_tokens=special, return_special_tokens_mask=True)
    ids, added = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    if not special:
        return ids
    probe = tokenizer("x", return_special_tokens_mask=True)["special_tokens_mask"]
    after = next((count for count, mark in enumerate(reversed(probe)) if not mark), 0)
    before, _ = repeated(ids, added)
    return ids[before : len(ids) - after]
