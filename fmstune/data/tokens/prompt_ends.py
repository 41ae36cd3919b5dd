"""Whether a prompt ends with other tokens when its answer follows.

Generation tokenises the prompt alone: GPT-2's pattern makes one token of two newlines that end it, and two
tokens if a word follows.
"""

from __future__ import annotations

import re
from typing import Any

from fmstune.data.rendering.rendered import Rendered

_END, _START = re.compile(r"\S{0,8}\s+\Z"), re.compile(r"\s*\S?")
_LOOKED_AT = 40
_KEPT = 1 << 14


class PromptEnds:
    """The ends of prompts that a tokenizer has been asked about. Chats have few, which their template
    writes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[str, str], bool] = {}

    def change(self, entry: Rendered) -> bool:
        """Whether that of an answer does. Without blanks at its end, it only does if it shares a token with
        the answer, which is found by itself."""
        text = entry.text
        return any(
            text[span.start - 1].isspace() and self._changes(text, span.start)
            for span in entry.spans
            if span.start
        )

    def _changes(self, text: str, start: int) -> bool:
        end = _END.search(text[max(0, start - _LOOKED_AT) : start])
        begin = _START.match(text, start, start + _LOOKED_AT)
        key = (end[0] if end else "", begin[0] if begin else "")
        if key not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            alone, whole = self._tokenizer([key[0], "".join(key)], add_special_tokens=False)["input_ids"]
            self._known[key] = whole[: len(alone)] != alone
        return self._known[key]
