"""Makes README's table of settings: `python -m tests.support.readme_options` writes it into README.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from fmstune.config.inspect.dump import option_table
from fmstune.trackers.registry import BUILT_IN, tracker_class

README = Path(__file__).parents[2] / "README.md"
_BETWEEN = re.compile(r"(?<=tests/test_readme.py -->\n).*?(?=<!-- end of options -->)", re.S)


def table() -> str:
    """The settings of fmstune's own tables and of its trackers, as Markdown."""
    rows = ["| setting | default | |", "|---|---|---|"]
    for option in option_table():
        if not option.key.startswith("training."):
            rows.append(f"| `{option.key}` | {_shown(option.default)} | {option.help} |")
    for name in BUILT_IN:
        declared = tracker_class(name).Config
        for field in dataclasses.fields(declared) if declared else ():
            rows.append(
                f"| `trackers.{name}.{field.name}` | {_shown(field.default)} | {field.metadata['help']} |"
            )
    return "\n".join(rows) + "\n"


def _shown(default: object) -> str:
    if default in (None, "", ()):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    README.write_text(_BETWEEN.sub(lambda _: table(), README.read_text()))
