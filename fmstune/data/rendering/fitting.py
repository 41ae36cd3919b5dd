"""Changes to a conversation for chat templates that want an order of roles, or write tags of their own."""

from __future__ import annotations

from collections.abc import Sequence

from fmstune.data.rows.messages import Message, says_something
from fmstune.errors import DataError

JOINED = {
    "user": "questions in a row are joined: the chat template wants questions and answers in turn",
    "assistant": "answers in a row are joined: the chat template wants questions and answers in turn",
}


def without_tags(messages: Sequence[Message], opens: str, closes: str) -> tuple[list[Message], bool]:
    """The messages with each tool result between these tags, as in Hermes's data, as its own message without
    the tags; and whether there are any."""
    made: list[Message] = []
    tagged = False
    for message in messages:
        results = _between(message["content"], opens, closes) if message["role"] == "tool" else []
        made += [message | {"content": result} for result in results] or [message]
        tagged = tagged or bool(results)
    return made, tagged


def _between(text: str, opens: str, closes: str) -> list[str]:
    """The texts between the tags, if there is nothing outside of them."""
    found: list[str] = []
    rest = text.strip()
    while rest:
        if not rest.startswith(opens) or closes not in rest:
            return []
        inner, _, rest = rest.removeprefix(opens).partition(closes)
        found.append(inner.strip())
        rest = rest.lstrip()
    return found


def first_speaker(messages: Sequence[Message]) -> str | None:
    speakers = (message["role"] for message in messages if message["role"] not in ("system", "developer"))
    return next(speakers, None)


def system_joined(messages: Sequence[Message]) -> list[Message]:
    """The messages with each system message prepended to the following question, as Gemma's authors do; one
    without a following question becomes a question itself."""
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


def neighbours_joined(messages: Sequence[Message], place: str) -> tuple[list[Message], list[str]]:
    """The messages with alternating questions and answers, and the roles whose messages were joined."""
    made: list[Message] = []
    joined = []
    for message in messages:
        role = message["role"]
        if not made or role not in JOINED or made[-1]["role"] != role:
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
    """Merge two messages: their texts concatenated, and all of their calls."""
    made = first | second
    for key in ("content", "reasoning_content"):
        texts = [each[key] for each in (first, second) if each.get(key)]
        if texts:
            made[key] = "\n\n".join(texts)
    calls = [call for each in (first, second) for call in each.get("tool_calls") or ()]
    if calls:
        made["tool_calls"] = calls
    if "masked" in first or "masked" in second:
        before = len(first["content"]) + 2 if first["content"] and second["content"] else 0
        behind = ((begin + before, end + before) for begin, end in second.get("masked", ()))
        made["masked"] = (*first.get("masked", ()), *behind)
    extra = first.get("extra", {}) | second.get("extra", {})
    if extra:
        made["extra"] = extra
    # The inline form is the whole of one content; for both, it starts with the reasoning of both.
    if made.pop("inline", None) is not None:
        made["inline"] = f"<think>\n{made['reasoning_content']}\n</think>\n\n{made['content']}"
    return made
