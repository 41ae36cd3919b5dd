"""Where an answer ends, from what a chat template writes after one: at the end of a conversation, and before
the next message."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARK = re.compile(r"<[^<>\s]{1,60}>|\[\|[^\[\]|\s]{1,60}\|\]|\[/?[A-Z_]{2,30}\]")
"""Text that looks like a special token, even if the loaded tokenizer has none of that name."""
_WORD = re.compile(rf"\s*(?:{_MARK.pattern}|\S+)")


@dataclass(frozen=True, slots=True)
class Ending:
    """Where an answer ends. `mark` is what the model must generate to end it, `after` what the template
    writes after that at the end of a conversation. `next`: the mark is the start of the next turn, and so
    is missing at the end of a conversation (GLM-4's `<|user|>`)."""

    mark: str = ""
    after: str = ""
    next: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """What a template writes around a question that is the first message: `before` it, and between it and
    its answer (`answered`)."""

    before: str
    answered: str


def find_ending(last: str, followed: str, question: str, turn: Turn, eos: str) -> Ending:
    """The end of an answer, from the text after it at the end of a conversation (`last`), and from the one
    that follows it if there is another `question`."""
    following, asked, _ = followed.partition(question)
    ends = _marks(last)
    common = [(start, end) for start, end in ends if followed.startswith(last[:end])]
    if ends:
        # Text that also occurs in the middle of a conversation belongs to the answer, text that only
        # follows at the end is the end of text (Phi-3's); if nothing is in common, the end is the answer's
        # (gpt-oss).
        start, end = (common or ends)[-1]
        if len(common) > 1 and asked and last[start:end] != eos:
            # If the next turn is always opened (Cohere), the last of them is the mark that opens any.
            word = _WORD.match(last, end)
            opens = word is not None and last[start : word.end()] in f"{turn.before}\0{turn.answered}"
            if opens and following[start:].strip() in turn.before:
                end = common[-2][1]
        return Ending(last[:end], last[end:])
    if last.strip():
        return Ending(last.rstrip(), last[len(last.rstrip()) :])
    return _beginning(followed[len(last) :] if followed.startswith(last) else followed)


def find_ending_of_calls(last: str, followed: str, value: str, result: str, usual: Ending) -> Ending:
    """The end of an answer that calls a tool with an argument of this `value`, from a conversation that ends
    with it and one where the `result` follows; `usual` is that of other answers."""
    if usual.next and not followed.startswith(last):
        return usual
    if usual.next:
        begins, ends = _beginning(followed[len(last) :]), _marks(last)
        if begins.mark or not ends or last[ends[-1][1] :].strip():
            return begins
        start, end = ends[-1]  # the result is in the same turn, without a mark before it (Apertus)
        return Ending(last[start:end], last[end:])
    closing = last[last.rfind(value) :]
    following = followed[followed.rfind(value, 0, followed.find(result)) :]
    # The first one: some write an answer without words after the calls (DeepSeek R1).
    before, ended, rest = closing.partition(usual.mark) if usual.mark else (closing, "", "")
    if ended and following.startswith(before + ended):
        return Ending(ended, rest)
    after = usual.after if usual.after.strip() and closing.endswith(usual.after) else ""
    closing = closing.removesuffix(after)
    ends = _marks(closing)
    common = [(start, end) for start, end in ends if following.startswith(closing[:end])]
    if not ends:
        return usual
    start, end = (common or ends)[-1]
    return Ending(closing[start:end], closing[end:] + after)


def _marks(text: str) -> list[tuple[int, int]]:
    """The positions of what looks like special tokens, in order."""
    return [found.span() for found in _MARK.finditer(text)]


def _beginning(following: str) -> Ending:
    """The mark that the next turn starts with, if any."""
    found = _MARK.match(following.lstrip())
    blank = len(following) - len(following.lstrip())
    return Ending(following[:blank] + found[0], "", next=True) if found else Ending()
