"""Safe HTML: text becomes part of markup only by being escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Markup:
    """HTML built here from escaped text."""

    text: str


def element(name: str, content: Markup | str | None, *, cls: str = "", **attributes: str) -> Markup:
    """An element with a content; strings are escaped. With `None`, a void element without an end tag."""
    given = {**({"class": cls} if cls else {}), **attributes}
    written = "".join(f' {key}="{escaped(value)}"' for key, value in given.items())
    if content is None:
        return Markup(f"<{name}{written}>")
    inner = content.text if isinstance(content, Markup) else escaped(content)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def join(parts: Iterable[Markup]) -> Markup:
    """Concatenate pieces of markup."""
    return Markup("\n".join(part.text for part in parts))


def table(
    head: Sequence[str], rows: Iterable[Sequence[Markup | str]], *, numbers: Sequence[str] = ()
) -> Markup:
    """A table that scrolls sideways if it is too wide; the columns named by `numbers` are numeric."""
    classes = ["number" if name in numbers else "" for name in head]
    cells = zip(head, classes, strict=True)
    top = element("tr", join([element("th", name, cls=cls) for name, cls in cells]))
    body = [
        element("tr", join([element("td", each, cls=cls) for each, cls in zip(row, classes, strict=True)]))
        for row in rows
    ]
    whole = element("table", join([element("thead", top), element("tbody", join(body))]))
    return element("div", whole, cls="wide")


def folded(title: str, content: Markup) -> Markup:
    """Collapsible content."""
    return element("details", join([element("summary", title), content]))


def escaped(text: str) -> str:
    """Escape a string for HTML. Lone surrogates, which cannot be encoded, are shown as escapes."""
    whole = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return html.escape(whole.replace("\0", "\\x00"), quote=True)
