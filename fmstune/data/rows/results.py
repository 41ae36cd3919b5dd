"""Results of tools, in the order of the calls that they answer."""

from __future__ import annotations

from typing import Any

from fmstune.errors import DataError

Message = dict[str, Any]


def in_order_of_calls(messages: list[Message], place: str, key: str) -> list[Message]:
    """The messages with the results that follow an answer in the order of its calls, where both have ids:
    many chat templates write no ids, and a result would be learnt as that of another call.

    Raises `DataError` for a result with an id that no call before it has.
    """
    made: list[Message] = []
    ids: list[Any] = []
    known: list[Any] = []
    for message in messages:
        calls = message.get("tool_calls") or []
        if calls:
            ids = [call.get("id") for call in calls]
            known += ids
        own = message.get("tool_call_id") if message["role"] == "tool" else None
        if own is not None and known and None not in known and own not in known:
            raise DataError(
                f"{place}: a result of a tool in `{key}` has the id {own!r}, and the calls before it have "
                f"{', '.join(map(repr, known))}; give it that of its call."
            )
        made.append(message)
        begin = len(made)
        while begin and made[begin - 1]["role"] == "tool":
            begin -= 1
        run = made[begin:]
        if len(run) > 1 and all(each.get("tool_call_id") in ids for each in run):
            made[begin:] = sorted(run, key=lambda each: ids.index(each["tool_call_id"]))
    return made
