"""Messages in one form, whatever form they were published in; all later code only reads this form.

A canonical message has `role` (one of `ROLES`) and `content` (a text), and if the row has them:
`reasoning_content` (with the original content in `inline`, if the reasoning was in it between <think> and
</think>), `tool_calls` (each `{"type", "id", "function": {"name", "arguments"}}`, the arguments as an object
if they are one), `name`, `tool_call_id`, `weight` (in the loss), `masked` (the ranges of `content` that are
not learnt), and in `extra` the fields that only a chat template may know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmstune.data.cells import as_boolean, loaded, parsed
from fmstune.data.columns import BY_HANDLER, SPEAKERS, as_list, has_value
from fmstune.data.rows.anthropic import calls_in_parts, with_own_results
from fmstune.data.rows.calls import read_calls
from fmstune.data.rows.contents import read_content, read_reasoning
from fmstune.data.rows.fields import Fields, Lost
from fmstune.data.rows.masks import DETAIL, outside_of
from fmstune.data.rows.responses import as_messages
from fmstune.data.rows.results import in_order_of_calls
from fmstune.data.rows.unused import Unused
from fmstune.data.rows.weights import weight_of
from fmstune.errors import DataError

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool", "developer")
_CALLS = ("function_call", "tool_call")
_CLOSES = "</think>"
_TRAINED = ("train", "training", "output_with_loss")
"""Booleans for an answer that is learnt; the last is of XTuner's turns."""


def read_messages(value: Any, place: str, key: str, unused: Unused | None = None) -> list[Message]:
    """The canonical messages of a column: a list, a single message, lists of their fields (as in
    `datasets`), or any of these as JSON text. `unused` counts their unread fields.

    Raises `DataError` for anything else, and for messages with an image, audio or video.
    """
    if type(value) is list and (said := _all_plain(value)):
        return said
    value = as_list(parsed(loaded(value, f"{place}: `{key}`")))
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise DataError(f"{place}: `{key}` takes a list of messages with at least one in it.")
    lost = Lost()
    made: list[Message] = []
    called = False
    for number, given in enumerate(as_messages(value, key, lost), 1):
        where = f"{place}: message {number} of `{key}`"
        for part in with_own_results(given, f"{key}.content", lost):
            message = _message(part, where, key, lost)
            also, called = called, _is_call(part)
            if also and called and _without_calls(made[-1]) == _without_calls(message):
                made[-1] = message | {"tool_calls": [*made[-1]["tool_calls"], *message["tool_calls"]]}
            else:
                made.append(message)
    made = in_order_of_calls(made, place, key, lost)
    if unused is not None:
        lost.report(unused, place)
    return made


def says_something(message: Message) -> bool:
    """Whether a message contains anything that a model could read or write."""
    return bool(
        message["content"].strip()
        or message.get("tool_calls")
        or message.get("reasoning_content", "").strip()
    )


def _is_call(given: Mapping[str, Any]) -> bool:
    """Whether its role says that it is a call. A run of these is one answer: ms-swift's parallel calls."""
    return str(given.get("role", given.get("from"))).strip().lower() in _CALLS


def _without_calls(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "tool_calls"}


def _message(given: Any, where: str, key: str, lost: Lost) -> Message:
    if not isinstance(given, Mapping) or not ("role" in given or "from" in given):
        raise DataError(f"{where} is not an object with `role` and `content`.{BY_HANDLER}")
    if len(given) == 2 and (plain := _plain(given)) is not None:
        return plain
    fields = Fields(given, key, lost)
    speaker, role = _speaker(fields)
    if given.get("type") == "message":  # the type in OpenAI's responses
        fields.get("type")
    if role is None:
        raise DataError(f"{where} has the role {speaker!r}; roles are {', '.join(SPEAKERS)}.{BY_HANDLER}")
    value = fields.first("content", "value", "message", "parts")  # Cohere's is `message`, Gemini's `parts`
    if role == "assistant" and not has_value(value) and isinstance(given.get("refusal"), str):
        value = fields.get("refusal")  # OpenAI's answers have their refusal there instead of a content
    calls = _calls(fields, where, lost)
    if role == "assistant":
        called, value = calls_in_parts(value, where, f"{key}.content", lost)
        if calls and any(each["function"] not in [call["function"] for call in calls] for each in called):
            raise DataError(
                f"{where} has calls in its `content` and others in a field; remove them from one."
            )
        calls = calls or called
    if _is_call(given) and not calls:
        calls, value = read_calls(value, where, f"{key}.content", lost), None
    content, thought, masked = read_content(value, role, where, f"{key}.content", lost)
    if role == "assistant" and fields.has(DETAIL):
        masked = (*masked, *outside_of(fields.get(DETAIL), content, where))
    if value is None and not calls and role != "assistant":
        raise DataError(f"{where} has no text as its `content`.")
    message: Message = {"role": role, "content": content}
    message |= read_reasoning(fields, role, content, thought, where, lost)
    if masked and "inline" in message:
        raise DataError(
            f"{where} has reasoning in its text, of which only a part is learnt; put the reasoning into "
            "`reasoning_content`."
        )
    if masked:
        message["masked"] = masked
    if calls:
        message["tool_calls"] = calls
    message |= {name: fields.get(name) for name in ("name", "tool_call_id") if fields.has(name)}
    weight = _weight(fields, where)
    if weight is not None:
        message["weight"] = weight
    extra = {name: given[name] for name in fields.rest()}
    return message | ({"extra": extra} if extra else {})


def _all_plain(value: Sequence[Any]) -> list[Message]:
    """The messages of a conversation in which all are plain; none of any other. Results of tools have an
    order."""
    made: list[Message] = []
    for given in value:
        plain = _plain(given) if type(given) is dict and len(given) == 2 else None
        if plain is None or plain["role"] == "tool":
            return []
        made.append(plain)
    return made


def _plain(given: Mapping[str, Any]) -> Message | None:
    """A message with only a role and a text, as almost all are, in a tenth of the time; `None` if more must
    be read from it."""
    speaker, content = given.get("role", given.get("from")), given.get("content", given.get("value"))
    if not isinstance(speaker, str) or not isinstance(content, str) or _CLOSES in content:
        return None
    role = SPEAKERS.get(speaker)
    return {"role": role, "content": content} if role is not None and speaker not in _CALLS else None


def _speaker(fields: Fields) -> tuple[Any, str | None]:
    """The role, by its name there and here; `from` next to a different `role` is reported."""
    there = [name for name in ("role", "from") if fields.has(name)]
    roles = [
        SPEAKERS.get(given.strip().lower()) if isinstance(given := fields.get(name), str) else None
        for name in there
    ]
    if len(there) == 2 and roles[0] != roles[1]:
        fields.lose("from")
    return (fields.given[there[0]], roles[0]) if there else (None, None)


def _calls(fields: Fields, where: str, lost: Lost) -> list[Message]:
    calls, legacy = (parsed(fields.get(name)) for name in ("tool_calls", "function_call"))
    found = read_calls(calls, where, f"{fields.name}.tool_calls", lost) if calls else []
    if not legacy:
        return found
    one = read_calls(legacy, where, f"{fields.name}.function_call", lost)
    if found and any(call["function"] not in [each["function"] for each in found] for call in one):
        fields.lose("function_call")
    return found or one


def _weight(fields: Fields, where: str) -> float | None:
    """A message's weight, under any of its names. Raises `DataError` for several that contradict each
    other."""
    found = {
        name: weight_of(fields.get(name), where, name)
        for name in ("weight", "loss_weight")  # the latter is LLaMA-Factory's
        if fields.has(name)
    }
    # ms-swift's `loss` is a boolean; elsewhere, a number of that name may be a measurement.
    swift = ("loss",) if as_boolean(fields.given.get("loss")) is not None else ()
    for name in (*_TRAINED, *swift):
        value = fields.get(name)
        said = as_boolean(value)
        if said is not None:
            found[name] = float(said)
        elif has_value(value):
            raise DataError(f"{where} has {value!r} as its `{name}`; it is true or false.")
    if len(set(map(bool, found.values()))) > 1:
        says = " and ".join(f"`{name}` {fields.given[name]!r}" for name in found)
        raise DataError(f"{where} has {says}, which contradict each other; remove one.")
    return next(iter(found.values()), None)
