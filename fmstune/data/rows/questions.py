"""A question and its answer under any of their names: Alpaca's, Dolly's, question and answer, and so on."""

from __future__ import annotations

from fmstune.data.columns import (
    CONTEXTS,
    HISTORY,
    SYSTEMS,
    Row,
    context_of,
    history_of,
    require_text,
    system_of,
)
from fmstune.data.rows.conversations import BESIDE_CHATS, template_inputs, with_system
from fmstune.data.rows.messages import read_messages
from fmstune.data.rows.recognised import Recognised
from fmstune.data.rows.unused import Unused
from fmstune.errors import DataError

OF_CHATS = (*SYSTEMS, HISTORY)
"""Columns that turn the texts next to them into a conversation."""

_PLAIN = ("prompt", "completion")
_ALPACA = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{}\n\n{}### Response:\n"
)


def question_rows(row: Row, question: str, answer: str, *, chat: bool) -> Recognised:
    """The rows of a source whose first one has these columns: conversations if the model supports them, else
    texts."""
    contexts = context_columns(question, answer)
    columns = frozenset((question, answer, *contexts, *OF_CHATS, *(BESIDE_CHATS if chat else ())))

    def parts(row: Row, place: str) -> tuple[str, str, str]:
        return (
            require_text(row, question, place),
            context_of(row, contexts, place),
            require_text(row, answer, place),
        )

    def as_messages(row: Row, place: str, unused: Unused) -> Row:
        instruction, context, output = parts(row, place)
        history = history_of(row, place)
        messages = read_messages(history, place, HISTORY, unused) if history else []
        messages.append({"role": "user", "content": with_context(instruction, context)})
        messages.append({"role": "assistant", "content": output})
        return template_inputs(row, place, unused) | {"messages": with_system(messages, row, place, unused)}

    def as_text(row: Row, place: str, unused: Unused) -> Row:
        if history_of(row, place):
            raise DataError(
                f"{place}: `{HISTORY}` makes it a conversation, but the model has no chat template; set one "
                "by name (model.chat_template = chatml), or as a file."
            )
        instruction, context, output = parts(row, place)
        prompt = plain_prompt(question, instruction, context, system_of(row, place))
        exact = (question, answer) == _PLAIN
        return {"prompt": prompt, "completion": output if exact else with_leading_space(prompt, output)}

    name = _name(row, question, answer, contexts)
    if chat:
        return Recognised("messages", f"{name} as messages", as_messages, columns)
    return Recognised("prompt/completion", name, as_text, columns)


def context_columns(question: str, answer: str = "") -> tuple[str, ...]:
    """The columns that are part of the question, in addition to these two."""
    if question == "prompt" and answer in ("completion", ""):
        return ("context",)  # `input` next to a prompt usually is what the prompt was built from
    return tuple(name for name in CONTEXTS if name not in (question, answer))


def plain_prompt(name: str, question: str, context: str, system: str) -> str:
    """The prompt of a question in the column `name`, for a model without support for conversations."""
    prompt = _alpaca(question, context) if name == "instruction" else with_context(question, context)
    return f"{system}\n\n{prompt}" if system else prompt


def with_context(question: str, context: str) -> str:
    """A question with its context, which may be all of it."""
    if not question.strip():
        return context or question
    return f"{question}\n\n{context}" if context else question


def _name(row: Row, question: str, answer: str, contexts: tuple[str, ...]) -> str:
    named = [name for name in contexts if name in row]
    if (question, answer) == ("instruction", "output") and "input" not in named:
        named.insert(0, "input")  # the order known from Alpaca
    before = [name for name in OF_CHATS if name in row]
    return "/".join([*before, question, *named, answer])


def _alpaca(instruction: str, context: str) -> str:
    """The prompt that Alpaca's authors published, for a model without a chat template."""
    given = ", paired with an input that provides further context" if context else ""
    return _ALPACA.format(given, instruction, f"### Input:\n{context}\n\n" if context else "")


def with_leading_space(prompt: str, answer: str) -> str:
    """The answer with a leading space, unless one of the two has a blank there (as fms-hf-tuning joins its
    `input` and `output`)."""
    return answer if not prompt or prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"
