"""How chat templates write reasoning: the tags around it, and prompts that open or close a block of it."""

from __future__ import annotations

import re

THINKING = (
    ("<think>", "<think>\n", "\n</think>\n\n"),
    ("<|channel>", "<|channel>thought\n", "\n<channel|>"),
    ("<|START_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[THINK]", "[/THINK]"),
    ("<seed:think>", "<seed:think>", "</seed:think>"),
)
"""How families write reasoning: the name that their templates mention, the opening and the closing tag."""

BLANK = "<think>\n\n</think>\n\n"
EMPTY_BLOCK = re.compile(r"<think>\s*</think>\s*")
_ANY_EMPTY = "|".join(
    rf"{re.escape(opens.strip())}\s*{re.escape(closes.strip())}\s*" for _, opens, closes in THINKING
)
_END = 200
"""The end of a prompt, in characters, in which its block is: a conversation may be long."""
_AT_START, _AT_END = re.compile(_ANY_EMPTY), re.compile(rf"(?:{_ANY_EMPTY})$")


def opened_by(prompt: str, known: str = "") -> str:
    """The end of a prompt that opens a block: `known`, or any family's tag."""
    if known and prompt.endswith(known):
        return known
    end = prompt[-_END:].rstrip()
    for name, opens, _ in THINKING:
        for tag in (opens.strip(), name):
            if end.endswith(tag):
                return prompt[prompt.rindex(tag) :]
    return ""


def closed_by(prompt: str) -> str:
    """The end of a prompt that is an empty block: it is for answers without reasoning."""
    found = _AT_END.search(prompt[-_END:])
    return found[0] if found else ""


def after_block(text: str, closes: str) -> str:
    """An answer without the empty block that its template writes before it, or the end of one (DeepSeek
    V3.2, GLM 4.7): the tags that also end `closes`."""
    if blank := _AT_START.match(text):
        return text[blank.end() :]
    both = next((n for n in range(min(len(text), len(closes)), 0, -1) if closes.endswith(text[:n])), 0)
    return text[both:] if text[:both].strip() else text


def with_one_block(text: str, closes: str = "") -> str:
    """An answer that starts with reasoning of its own, without the template's empty block before it."""
    shorter = after_block(text, closes)
    return shorter if any(shorter.startswith(name) for name, _, _ in THINKING) else text


def in_opened_block(text: str, reasoning: str, opens: str, closes: str) -> str:
    """What follows a prompt that opens a block, for an answer that its template writes as `text`, with a
    block of its own or without one."""
    at = text.find(reasoning) if reasoning else -1
    own = text[:at].strip() == opens.strip() or text.startswith(reasoning + closes)
    if at >= 0 and own:
        return text[at:]  # with other blanks than in the prompt, or without the sentence that it ends with
    return reasoning + closes + after_block(text, closes)
