"""Conversations in OpenAI's format, which parts of them are trained, and what a chat template renders."""

from __future__ import annotations

import functools
import json
import weakref
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from fmstune.data.rendering.answer import Writer
from fmstune.data.rendering.render import Renderer
from fmstune.data.rows.messages import read_messages
from fmstune.data.tokens.labels import Part, label
from fmstune.data.tokens.table import IGNORED

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds.",
            "parameters": {
                "type": "object",
                "properties": {"what": {"type": "string", "description": "That."}},
                "required": ["what"],
            },
        },
    }
]
WITHOUT_TOOLS = {
    *("cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "idefics3", "lfm2"),
    *("llama3", "llava_next", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm"),
}
ALTERNATING = {"cohere", "cohere2", "gemma", "gemma3"}
ASKED_FIRST = ("llama3_1", "llama3_2", "qwen3_5", "qwen3_6", "qwen3_8")
"""They refuse a conversation without a question, or render tools in its first message: add a question."""
PARTS = {"idefics3", "llava_next", "smolvlm"}
WITHOUT_SYSTEM = {"gemma"}
words = st.text(st.sampled_from("abcxyz é😀\n'\"{}:."), min_size=1, max_size=12).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn, *, tools: bool, alternating: bool) -> list[dict[str, Any]]:
    """Conversations in OpenAI's format: a system message, turns, tool calls, reasoning in a field or in the
    text, consecutive answers, an assistant that speaks first, empty answers."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(words)})
    if not alternating and draw(st.integers(0, 4)) == 0:
        messages.append({"role": "assistant", "content": draw(words)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(words)})
        if tools and draw(st.booleans()):
            what: Any = {"what": draw(st.one_of(words.map(str.strip), st.integers(), st.booleans()))}
            what = json.dumps(what) if draw(st.booleans()) else what
            call = {"type": "function", "id": "c12345678", "function": {"name": "find", "arguments": what}}
            said = draw(st.sampled_from(["", None, "Look."]))
            thought = {} if said else draw(st.sampled_from([{}, {"reasoning_content": "because"}]))
            messages.append({"role": "assistant", "content": said, "tool_calls": [call], **thought})
            messages.append(
                {"role": "tool", "name": "find", "tool_call_id": "c12345678", "content": draw(words)}
            )
        for _ in range(1 if alternating else draw(st.integers(1, 2))):
            messages.append(draw(answers()))
    messages.append(draw(answers(silent=False)))
    if messages[-2]["role"] == "assistant" and alternating:
        messages.insert(-1, {"role": "user", "content": draw(words)})
    return messages


@st.composite
def answers(draw: st.DrawFn, *, silent: bool = True) -> dict[str, Any]:
    kind = draw(st.sampled_from(["plain", "plain", "field", "inline", *(["silent"] if silent else [])]))
    content = draw(words)
    if kind == "field":
        name = draw(st.sampled_from(["reasoning_content", "reasoning", "thinking"]))
        return {"role": "assistant", "content": content, name: f"because {draw(words)}"}
    if kind == "inline":
        thought = f"because {draw(words).strip()}"
        return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{content.strip()}"}
    return {"role": "assistant", "content": content if kind == "plain" else ""}


@dataclass(frozen=True)
class Learnt:
    """A trained span of a training row, and everything before it."""

    before: str
    trained: str


def writer_of(using: Any) -> Writer:
    """A writer for this tokenizer's chat template, probed once for all conversations, as in a run."""
    return _writer_of(using, using.chat_template)


@functools.lru_cache(maxsize=64)
def _writer_of(using: Any, template: str) -> Writer:
    return Writer(using)


def learnt(messages: list[dict[str, Any]], using: Any, tools: Any, **how: Any) -> list[Learnt]:
    """The trained spans of a conversation, read back from its tokens and labels."""
    row = {"messages": read_messages(messages, "here", "messages")} | ({"tools": tools} if tools else {})
    parts = Renderer(writer_of(using), **how).render(row, "messages", "here").parts
    found = []
    for each in label([Part("here", part) for part in parts], using, will_cut=False):
        begin = None
        for at, token in enumerate([*each.labels, IGNORED]):
            ends = begin is not None and (token == IGNORED or at in each.begins)
            if ends:
                found.append(Learnt(text(each.ids[:begin], using), text(each.ids[begin:at], using)))
                begin = None
            if token != IGNORED and begin is None:
                begin = at
    return found


def text(ids: Any, using: Any) -> str:
    return str(using.decode(ids, clean_up_tokenization_spaces=False))


def given_to(
    template: str, message: dict[str, Any], *, thinks: bool, history: bool = False
) -> dict[str, Any]:
    """A message with the fields that the template may read: reasoning under each of its names, arguments as
    objects. `thinks` says that the template renders reasoning, or opens it; in the `history` DeepSeek's cuts
    it out of the content, and keeps the blank lines after it."""
    made = dict(message)
    thought = next(
        (made.pop(name) for name in ("reasoning_content", "reasoning", "thinking") if name in made), None
    )
    content = made["content"] or ""
    cuts = history and template.startswith("deepseek") and "tool_calls" not in made
    if thinks and content.startswith("<think>") and not cuts:
        thought, _, content = content.removeprefix("<think>\n").partition("\n</think>\n\n")
    if thought and thinks:
        made |= dict.fromkeys(("reasoning_content", "thinking"), thought)
    made["content"] = [{"type": "text", "text": content}] if template in PARTS else content
    if "tool_calls" in made:
        function = made["tool_calls"][0]["function"]
        arguments = function["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        made["tool_calls"] = [made["tool_calls"][0] | {"function": function | {"arguments": arguments}}]
    return made


def first_speaker(messages: list[dict[str, Any]]) -> str:
    return next(str(message["role"]) for message in messages if message["role"] != "system")


def thinks(using: Any, *, calls: bool = False) -> bool:
    """Whether a template renders the reasoning of an answer, or opens it; for Gemma 4, that of `calls`."""
    known = _THINKS.setdefault(using, {})
    how = (using.chat_template, calls)
    if how not in known:
        known[how] = _thinks(using, calls)
    return known[how]


_THINKS: weakref.WeakKeyDictionary[Any, dict[tuple[str, bool], bool]] = weakref.WeakKeyDictionary()


def _thinks(using: Any, calls: bool) -> bool:
    user = {"role": "user", "content": "a"}
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "b",
        "reasoning_content": "THOUGHT",
        "thinking": "THOUGHT",
    }
    if calls:
        answer |= {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}]}
    try:
        written = using.apply_chat_template([user, answer], tokenize=False)
        prompt = using.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    except Exception:  # it requires content as parts, which no template with reasoning does
        return False
    return "THOUGHT" in written or prompt.rstrip().endswith("<think>")


def rendered(
    template: str, messages: list[dict[str, Any]], using: Any, tools: Any, *, prompt: bool
) -> str | None:
    """What the template renders; `None` if it refuses, as most do when there is no question yet."""
    messages = [
        given_to(
            template,
            message,
            thinks=thinks(using) or ("tool_calls" in message and thinks(using, calls=True)),
            history=prompt or number < len(messages),
        )
        for number, message in enumerate(messages, 1)
    ]
    if template in WITHOUT_SYSTEM and messages and messages[0]["role"] == "system":
        system, *messages = messages
        joined = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
        if joined != 0:
            return None
        messages[0] = messages[0] | {"content": f"{system['content']}\n\n{messages[0]['content']}"}
    try:
        return str(
            using.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
        )
    except Exception:  # a template may raise anything
        return None


def calls_of(*arguments: Any, ids: tuple[str, ...] = ("c12345678", "d12345678")) -> list[dict[str, Any]]:
    return [
        {"type": "function", "id": own, "function": {"name": "find", "arguments": each}}
        for own, each in zip(ids, arguments, strict=False)
    ]
