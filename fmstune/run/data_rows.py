"""Keep a few rows as the model saw them, for the run's report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fmstune.data.preview import view_rows
from fmstune.layout import DATA_ROWS
from fmstune.system.files import replace_text

if TYPE_CHECKING:
    from fmstune.training.build import BuiltTrainer

_ROWS = 3
_MOST_TEXT = 4_000
"""The maximum length of a piece of a row, in characters."""


def write_data_rows(built: BuiltTrainer, directory: Path) -> None:
    """Write the first training rows, in order, with the trained part of each.

    Skips streams, which would be read twice. Raises `OSError`.
    """
    if built.data.streaming:
        return
    rows = built.trainer.train_dataset
    if not {"input_ids", "labels"} <= {*rows.column_names} and "prompt_ids" not in rows.column_names:
        return  # packed by TRL: rows consist of parts of several
    views = view_rows(rows, built.tokenizer, _ROWS, built.places)
    found = [
        {
            "name": view.name,
            "tokens": view.tokens,
            "trained": view.trained,
            "pieces": [
                dataclasses.asdict(dataclasses.replace(each, text=_cut(each.text))) for each in view.pieces
            ],
        }
        for view in views
    ]
    replace_text(directory / DATA_ROWS, json.dumps(found, ensure_ascii=False, indent=1))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"
