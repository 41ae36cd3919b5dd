"""Words that a chat template leaves out although the same characters occur elsewhere in the row.

`words` searches each text in the rendering, and an equal text of another message satisfies it. If there are
fewer occurrences than the row has, the message is rendered again with a mark in its place.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fmstune.data.rendering.conversation import ChatWriter
from fmstune.data.rendering.words import TAGS, Missing, kind_of_words
from fmstune.data.rows.messages import Message
from fmstune.errors import DataError

_MARK = "qzvfmsqx"
"""Not a word in any language; a template would not split, trim or escape it."""


@dataclass(frozen=True)
class HiddenWords:
    """Determine what of a fitted conversation is not in its `texts`, with one or two renderings for each
    message in doubt."""

    writer: ChatWriter
    messages: Sequence[Message]
    tools: Any
    place: str
    texts: Sequence[str]

    def contents(self) -> Iterator[Missing]:
        """The text of messages that the template leaves out."""
        for number, message in enumerate(self.messages):
            words = message["content"].strip()
            what = kind_of_words(message)
            if what != TAGS and self._is_in_doubt(words) and not self._is_written(number, "content"):
                yield what, words

    def reasoning(self, numbers: Iterable[int], *, whole: bool = False) -> bool:
        """Whether the template leaves out the reasoning of one of these answers in what it writes before
        the next one, or with `whole` in the whole conversation."""
        return any(
            self._is_in_doubt(self.messages[number].get("reasoning_content", "").strip())
            and not self._is_written(number, "reasoning_content", whole=whole)
            for number in numbers
        )

    def _is_in_doubt(self, words: str) -> bool:
        """Whether finding the words in the texts proves little: they are words of the template too, or
        there are fewer of them than in the row."""
        if not words:
            return False
        there = max((text.count(words) for text in self.texts), default=0)
        return there < self._row.count(words) or words in self.writer.own_words

    @functools.cached_property
    def _row(self) -> str:
        """All texts of the row, separated."""
        said: list[str] = [_as_json(self.tools)]
        for message in self.messages:
            said += [message["content"], message.get("reasoning_content", "")]
            said += [_as_json(message[key]) for key in ("tool_calls", "name", "extra") if message.get(key)]
        return "\0".join(said)

    def _is_written(self, number: int, key: str, *, whole: bool = False) -> bool:
        """Whether a mark in place of a message's text is written: in the answer that it is or that follows
        it, or in the whole conversation."""
        mark = _MARK
        while any(mark in text for text in self.texts):
            mark += "z"
        marked = list(self.messages)
        marked[number] = _with(self.messages[number], key, mark)
        after = range(number + (key == "reasoning_content"), len(marked))
        answer = next((at for at in after if marked[at]["role"] == "assistant"), len(marked) - 1)
        # The model is given a prompt; what precedes its answer may be written differently.
        asks = [] if answer == number or whole else [(answer, True)]
        refused = False
        for end, prompt in [*asks, *([] if whole else [(answer + 1, False)]), (len(marked), False)]:
            try:
                if mark in self.writer.whole(marked[:end], self.tools, self.place, prompt=prompt):
                    return True
            except DataError:
                refused = True  # it refuses the mark, or needs more of the conversation: unknown
        return refused


def _with(message: Message, key: str, mark: str) -> Message:
    made = message | {key: mark}
    if "inline" in made:
        made["inline"] = f"<think>\n{made.get('reasoning_content', '')}\n</think>\n\n{made['content']}"
    return made


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if value else ""
