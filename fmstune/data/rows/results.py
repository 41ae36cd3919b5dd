"""Tool results, in the order of the calls that they answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fmstune.data.rows.fields import Lost
from fmstune.errors import DataError

Message = dict[str, Any]

NO_RESULT = "calls of tools have no result, though the conversation continues after them"
OTHER_NAME = "results of tools have the name of none of the calls that they follow"


def in_order_of_calls(messages: Sequence[Message], place: str, key: str, lost: Lost) -> list[Message]:
    """The messages, with the results after an answer in the order of its calls, matched by their ids, else
    by the names of tools: many chat templates write neither, and a result would be learnt for the wrong
    call. Calls without a result are recorded in `lost`.

    Raises `DataError` for a result with an id that none of the earlier calls has.
    """
    made: list[Message] = []
    known: list[Any] = []
    waiting: list[Message] = []
    for run in _runs(messages):
        if run[0]["role"] == "tool":
            _require_known(run, known, place, key)
            order, waiting = _matched(run, waiting, lost)
            made += order
            continue
        if waiting:
            lost.remarks[NO_RESULT] = None
        waiting = [call for message in run for call in message.get("tool_calls") or ()]
        known += [call.get("id") for call in waiting]
        made += run
    return made


def _runs(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Runs of consecutive results, runs of consecutive answers, and each other message."""
    run: list[Message] = []
    for message in messages:
        if run and (message["role"] != run[0]["role"] or message["role"] not in ("tool", "assistant")):
            yield run
            run = []
        run.append(message)
    if run:
        yield run


def _require_known(run: Sequence[Message], known: Sequence[Any], place: str, key: str) -> None:
    for message in run:
        own = message.get("tool_call_id")
        if own is not None and known and None not in known and own not in known:
            raise DataError(
                f"{place}: a result of a tool in `{key}` has the id {own!r}, and the calls before it have "
                f"{', '.join(map(repr, known))}; give it that of its call."
            )


def _matched(
    run: Sequence[Message], calls: Sequence[Message], lost: Lost
) -> tuple[list[Message], list[Message]]:
    """The results in the order of their calls, and the calls without one. Results that belong to no call come
    last, like a second result of a call."""
    free = dict(enumerate(calls))
    found: dict[int, int] = {}
    names = {call["function"]["name"] for call in calls}
    for by in (_by_id, _by_name, _by_order):
        for number, result in enumerate(run):
            if number not in found:
                at = next((at for at, call in free.items() if by(result, call)), None)
                if at is not None:
                    found[number] = at
                    del free[at]
                    if by is _by_order and result.get("name") and result["name"] not in names:
                        lost.remarks[OTHER_NAME] = None
    order = sorted(range(len(run)), key=lambda number: found.get(number, len(calls)))
    return [run[number] for number in order], list(free.values())


def _by_id(result: Message, call: Message) -> bool:
    return result.get("tool_call_id") is not None and result["tool_call_id"] == call.get("id")


def _by_name(result: Message, call: Message) -> bool:
    return result.get("name") == call["function"]["name"] and _by_order(result, call)


def _by_order(result: Message, call: Message) -> bool:
    """Whether their ids do not contradict it."""
    return result.get("tool_call_id") is None or call.get("id") is None
