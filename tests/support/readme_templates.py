"""Generates the table of chat templates; `python -m tests.support.readme_templates` writes it to docs/."""

from __future__ import annotations

from typing import Any

from fmstune.data.rendering.answer import LOST_REASONING
from fmstune.data.rendering.render import Renderer
from fmstune.data.rendering.rendered import Rendering
from fmstune.data.rows.messages import read_messages
from fmstune.errors import DataError
from tests.support.chat_templates import TEMPLATES, tokenizer_with
from tests.support.conversations import writer_of
from tests.support.documents import put

_TOOL = {"name": "find", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": _TOOL}]
CALL = {"id": "c12345678", "type": "function", "function": {"name": "find", "arguments": '{"what": "it"}'}}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def says(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


KINDS: dict[str, list[dict[str, Any]]] = {
    "three turns": [user("a"), says("b"), user("c"), says("d"), user("e"), says("f")],
    "system": [{"role": "system", "content": "s"}, user("a"), says("b")],
    "calls of tools": [
        user("a"),
        says("", tool_calls=[CALL]),
        {"role": "tool", "name": "find", "tool_call_id": "c12345678", "content": "r"},
        says("b"),
    ],
    "reasoning in a field": [user("a"), says("b", reasoning_content="because")],
    "reasoning in the text": [user("a"), says("<think>\nbecause\n</think>\n\nb")],
    "answers in a row": [user("a"), says("b"), says("c")],
    "assistant first": [says("a"), user("b"), says("c")],
}


def matrix() -> str:
    """How each of TRL's templates renders each kind of conversation, as Markdown."""
    named: dict[tuple[str, ...], list[str]] = {}
    for template in TEMPLATES:
        named.setdefault(tuple(_cell(template, kind) for kind in KINDS), []).append(template)
    rows = [f"| chat template | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 1) + "|"]
    rows += [f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in named.items()]
    return "\n".join(rows) + "\n"


def _cell(template: str, kind: str) -> str:
    row = {"messages": read_messages(KINDS[kind], "here", "messages")}
    if kind == "calls of tools":
        row["tools"] = TOOLS
    try:
        made = Renderer(writer_of(tokenizer_with(template))).render(row, "messages", "here")
    except DataError:
        return "refused"
    return _in_words(made)


def _in_words(made: Rendering) -> str:
    if LOST_REASONING in made.remarks:
        return "named"
    if any("joined" in remark for remark in made.remarks):
        return "joined"
    if any("empty question" in remark for remark in made.remarks):
        return "after an empty question"
    return f"{len(made.parts)} rows" if len(made.parts) > 1 else "✓"


if __name__ == "__main__":
    put("chat templates", matrix())
