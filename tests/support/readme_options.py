"""Generates the tables of settings and of trackers; `python -m tests.support.readme_options` writes them to
README and docs/."""

from __future__ import annotations

import dataclasses

from fmstune.config.inspect.dump import option_table
from fmstune.trackers.described import DELIVERS, KEEPS, described
from fmstune.trackers.registry import BUILT_IN, tracker_class
from tests.support.documents import put


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


def matrix() -> str:
    """What each tracker stores and what delivery to it guarantees, as Markdown."""
    trackers = {name: tracker_class(name) for name in BUILT_IN if name != "none"}
    trackers["hf:NAME"] = tracker_class("hf:wandb")
    rows = [
        f"| tracker | {' | '.join((*KEEPS, *DELIVERS))} |",
        f"|{'---|' * (1 + len(KEEPS) + len(DELIVERS))}",
    ]
    for name, tracker in trackers.items():
        about = described(name, tracker)
        cells = [*(about.keeps[key] for key in KEEPS), *(about.delivers[key] for key in DELIVERS)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _shown(default: object) -> str:
    if default in (None, "", ()):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    put("options", table())
    put("matrix", matrix())
