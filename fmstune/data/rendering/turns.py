"""A conversation rendered once, and cut after each of its messages.

The text before an answer is a separate rendering for every turn, and two for each answer. Most templates
write one message after another and never look ahead: then each of these renderings is a prefix of the
longest. This is not assumed. The template runs with a mark at the end of its loop over the messages, and
over a list that detects access to a message that is not yet due, or to the number of messages. If that
happens, or the template is built differently, there is no rendering here and each turn is rendered
separately. The first conversations are rendered both ways.
"""

from __future__ import annotations

import functools
import operator
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import jinja2
from jinja2 import nodes
from transformers import PreTrainedTokenizerBase

from fmstune.data.rendering.dialect import Given
from fmstune.transformers_compat import template_environment

_COMPARED = 8
"""The number of conversations that are also rendered turn by turn."""
_MISSES = 3
"""After this many conversations without a rendering, and none with one, no more are tried."""
_REASONING = frozenset(("reasoning_content", "reasoning", "thinking"))
"""Fields that transformers also passes to the template under other names."""
_CHANGING = {"messages", "strftime_now"}
_MARK = secrets.token_hex(16)
"""Not a text of any conversation."""

Render = Callable[[Sequence[Given], bool], str]
_Cut = tuple[str, list[int | None]]
"""A text, and the end of each message in it."""


class Turns:
    """What a template writes of consecutive conversations, up to each of their messages. `render` renders a
    single turn, with or without a generation prompt; `variables` are those of the template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        render: Render,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._render, self._variables = render, dict(variables or {})
        self._special = dict(tokenizer.special_tokens_map)
        source = tokenizer.chat_template
        own = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        self._template = _marked(source) if isinstance(source, str) and not own else None
        self._prompt: str | None = None
        self._compared = self._missed = 0
        self._messages: Sequence[Any] = ()
        self._text, self._tail = "", ""
        self._ends: list[int | None] = []

    def begin(self, messages: Sequence[Any], given: Sequence[Given]) -> None:
        """Render a conversation in the template's form (`given`), for `turn`."""
        self._messages = ()
        if self._template is None or not given or not all(map(_is_plain, given)):
            return
        found = self._rendered(given, prompt=False)
        if found is None or not self._agrees(found, given):
            self._missed += 1
            if self._missed == _MISSES and not self._compared:
                self._template = None
            return
        self._messages = messages
        self._text, self._ends = found
        self._tail = self._text[self._ends[-1] :]  # the last message is in the loop

    def turn(self, messages: Sequence[Any], *, prompt: bool) -> str | None:
        """The rendering of these messages, if they are the first ones of the current conversation."""
        count = len(messages)
        if not 0 < count <= len(self._messages):
            return None
        if not all(map(operator.is_, messages, self._messages)):
            return None
        end = self._ends[count - 1]
        return None if end is None else f"{self._text[:end]}{self._prompt if prompt else self._tail}"

    def _agrees(self, found: _Cut, given: Sequence[Given]) -> bool:
        """Whether it equals the turn-by-turn rendering, checked for the first conversations."""
        text, ends = found
        if self._prompt is None:
            opened = self._rendered(given, prompt=True)
            if opened is None:
                return False
            self._prompt = opened[0][opened[1][-1] :]
        if self._compared >= _COMPARED:
            return True
        closing = {True: self._prompt, False: text[ends[-1] :]}
        try:
            same = all(
                self._render(given[:count], prompt) == f"{text[:end]}{closing[prompt]}"
                for count, end in enumerate(ends, 1)
                if end is not None
                for prompt in (False, True)
            )
        except Exception:  # a template may refuse a part of a conversation; the caller handles that
            return False
        self._compared += same
        self._template = self._template if same else None
        return same

    def _rendered(self, given: Sequence[Given], *, prompt: bool) -> _Cut | None:
        """The text, and the end of each message in it; `None` if the template looked ahead."""
        assert self._template is not None
        seen = _Seen()
        values: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": prompt}
        values |= self._variables | {"messages": _Watched(given, seen)}
        context = self._template.new_context(self._special | values)
        pieces: list[str] = []
        ends: list[int | None] = []
        length = 0
        try:
            for piece in self._template.root_render_func(context):
                if piece == _MARK:
                    seen.done = seen.now
                    ends.append(length)
                else:
                    pieces.append(piece)
                    length += len(piece)
        except (
            Exception
        ):  # it refuses the conversation, or this kind of list: the turn-by-turn rendering reports it
            return None
        if seen.ahead or not ends:
            return None
        # What the template writes before its loop, perhaps a system message, does not end in it.
        ends = [*[None] * (seen.first or 0), *ends]
        return ("".join(pieces), ends) if len(ends) == len(given) else None


class _Seen:
    """How far a template has read: the message that it is writing (`now`), the last one that it has
    written, and whether it has requested more."""

    __slots__ = ("ahead", "done", "first", "now")

    def __init__(self) -> None:
        self.now, self.done, self.ahead = -1, -1, False
        self.first: int | None = None


class _Watched(Sequence[Given]):
    """The messages of a conversation, and `seen`, the accesses to them. Not a list: code that bypasses a
    list's methods fails here instead of being overlooked."""

    __slots__ = ("_from", "_items", "_seen")

    def __init__(self, items: Sequence[Given], seen: _Seen, start: int = 0) -> None:
        self._items, self._seen, self._from = items, seen, start

    @overload
    def __getitem__(self, key: int) -> Given: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[Given]: ...
    def __getitem__(self, key: int | slice) -> Given | Sequence[Given]:
        if isinstance(key, slice):
            start = key.start or 0
            if start >= 0 and key.stop is None and key.step in (None, 1):
                return _Watched(self._items, self._seen, self._from + start)
            self._seen.ahead = True
            return self._items[self._from :][key]
        # The first message is in every prefix of the conversation.
        if key < 0 or self._from + key > max(self._seen.now, 0):
            self._seen.ahead = True
            return self._items[self._from :][key]
        return self._items[self._from + key]

    def __len__(self) -> int:
        self._seen.ahead = True
        return len(self._items) - self._from

    def __bool__(self) -> bool:
        return len(self._items) > 0 if not self._from else len(self) > 0

    def __iter__(self) -> Iterator[Given]:
        seen = self._seen
        if seen.first is not None:
            seen.ahead = True  # it reads them twice
        seen.first = self._from
        last = None
        for number in range(self._from, len(self._items)):
            seen.ahead = seen.ahead or (last is not None and seen.done != last)  # as `loop.last` does
            seen.now = last = number
            yield self._items[number]
        seen.ahead = seen.ahead or (last is not None and seen.done != last)


def _is_plain(message: Given) -> bool:
    """Whether transformers passes exactly this message to the template."""
    for name, value in message.items():
        if type(value) is not str and not (name == "content" and isinstance(value, list)):
            return False
    return _REASONING.isdisjoint(message)


# Takes as long as rendering a hundred conversations, and a template has several writers.
@functools.lru_cache(maxsize=16)
def _marked(source: str) -> jinja2.Template | None:
    """The template with a mark at the end of its last loop; `None` if the text after it may depend on the
    conversation, or the text before it on whether there is a generation prompt."""
    environment = template_environment(source)
    tree = environment.parse(source)
    loops = [number for number, node in enumerate(tree.body) if isinstance(node, nodes.For)]
    if not loops or next(tree.find_all((nodes.Block, nodes.Extends)), None) is not None:
        return None
    loop = tree.body[loops[-1]]
    before, after = tree.body[: loops[-1] + 1], tree.body[loops[-1] + 1 :]
    assert isinstance(loop, nodes.For)
    stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    stored |= {macro.name for macro in tree.find_all(nodes.Macro)}
    stored |= {reference.name for reference in tree.find_all(nodes.NSRef)}
    if _read(after) & (stored | _CHANGING) or "add_generation_prompt" in _read(before) | stored:
        return None
    loop.body.append(nodes.Output([nodes.TemplateData(_MARK)], lineno=loop.lineno))
    compiled = environment.compile(tree)
    # A plain dict: jinja copies its globals for each rendering, and to copy the `ChainMap` of `make_globals`
    # takes a third of the time of a short conversation.
    return environment.template_class.from_code(environment, compiled, dict(environment.globals))


def _read(body: Sequence[nodes.Node]) -> set[str]:
    """The names that a part of a template reads."""
    found: set[str] = set()
    for node in body:
        names = [node] if isinstance(node, nodes.Name) else []
        found.update(name.name for name in [*names, *node.find_all(nodes.Name)] if name.ctx == "load")
    return found
