"""Answers that repeat their prompt: whole conversations next to a prompt that is their beginning."""

from __future__ import annotations

from collections.abc import Sequence

from fmstune.data.rows.messages import Message, says_something
from fmstune.errors import DataError


def split_off_prompt(
    prompt: Sequence[Message], answer: Sequence[Message], where: str, key: str
) -> tuple[list[Message], list[Message]] | None:
    """The whole prompt, and the part of the answer that follows it, if the answer in the column `key`
    repeats the prompt or the end of it; `None` if it continues the prompt.

    Raises `DataError` for an answer that repeats the question after other messages.
    """
    said = [message for message in prompt if says_something(message)]
    if len(said) < len(prompt) and answer and answer[0]["role"] != "assistant":
        # An empty prompt, as in tables whose answers are whole conversations.
        return split_off_prompt(said, answer, where, key) or (said, list(answer))
    for length in range(min(len(prompt), len(answer)), 0, -1):
        again = prompt[-length:]
        asks = any(message["role"] in ("user", "system", "developer") for message in again)
        if (asks or length == len(prompt)) and _same(again, answer[:length]):
            return list(prompt), list(answer[length:])
    until = next((at for at, each in enumerate(answer) if each["role"] == "assistant"), len(answer))
    for begin in range(until):
        end = begin + len(prompt)
        if prompt and _same(prompt, answer[begin:end]):
            return list(answer[:end]), list(answer[end:])
    if prompt and prompt[-1]["role"] == "user" and any(_same(prompt[-1:], [each]) for each in answer[:until]):
        raise DataError(
            f"{where}: `{key}` repeats the question of `prompt` after other messages; include what "
            "comes before an answer only once."
        )
    return None


def _same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    return len(some) == len(others) and all(map(_is, some, others))


def _is(one: Message, other: Message) -> bool:
    if one["role"] != other["role"] or one["content"].strip() != other["content"].strip():
        return False
    return all(one.get(name) == other.get(name) for name in ("tool_calls", "tool_call_id", "name"))
