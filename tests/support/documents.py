"""README and the docs/ files that it links to: their text, and the tables that tests generate in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = (README, *sorted(ROOT.glob("docs/*.md")))


def all_text() -> str:
    """The text of all documents, concatenated."""
    return "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)


def put(name: str, table: str) -> None:
    """Write a table between the comments `<!-- NAME … -->` and `<!-- end of NAME -->`, wherever they are."""
    between = re.compile(rf"(?<=<!-- {name})([^>]*-->\n).*?(?=<!-- end of {name} -->)", re.S)
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = between.sub(lambda found: found.group(1) + table, before)
        if after != before:
            path.write_text(after, encoding="utf-8")
