"""Propose a first configuration from the data: the format of the rows gives the method, their number the
rest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import tomli_w

from fmstune.config.load.load import load
from fmstune.config.load.values import dotted, parse_sets
from fmstune.config.methods.known import DEFAULT, METHODS
from fmstune.config.schema.data import DataSource
from fmstune.config.schema.tables import DEMO, DEMO_TRAINING
from fmstune.data.files.source import Origin, Split
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.errors import DataError
from fmstune.text import counted

_LOOKED_AT = 2_000
"""The maximum number of rows to read; the number of rows of a larger file stays unknown."""
_HELD_OUT = 50
"""With fewer rows, nothing is held out: an evaluation on so few is meaningless."""
_SPLITS: tuple[Split, Split] = ("train", "eval")
_ONE_EPOCH = 20_000
_CHARACTERS = 3
"""A lower bound of characters per token in most languages, so that lengths are estimated on the safe side."""
_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
_SMALL_BYTES = 1_000_000_000
"""Smaller models are tuned in full: they fit, and learn more."""
_METHODS = {"preference": "dpo", "preference with margin": "reward", "labelled": "kto"}
"""The method for each kind of rows; all others are for sft."""
_DATA_FILES = ("*.jsonl", "*.json", "*.csv", "*.parquet", "*.jsonl.gz", "*.tsv")


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Facts about the training data: the name and `kind` of the row format, the method that fits it, the
    number of rows read (`whole`: all of them), and the 95th percentile of their characters. `known` is false
    for data that cannot be read before the run, such as on the hub."""

    shape: str = ""
    method: str = DEFAULT
    rows: int = 0
    whole: bool = False
    characters: int = 0
    known: bool = False
    kind: str = ""

    def line(self) -> str:
        """The facts as a line of text."""
        if not self.known:
            return "not inspected: it is not on this disk"
        more = "" if self.whole else "at least "
        rows = counted(self.rows, "row")
        return f"{more}{rows} ({self.shape}), 95% have at most {self.characters:,} characters"


@dataclass(frozen=True, slots=True)
class Proposal:
    """The contents of the file."""

    model: str
    data: Sequence[str]
    eval_data: Sequence[str]
    method: str
    lora: bool
    trackers: Sequence[str]
    facts: DataFacts
    sets: Sequence[str] = ()
    """Further settings, as `KEY=VALUE`."""


def found_data() -> str | None:
    """A file here that may be the training data: one named so, or else the largest."""
    files = [
        file for pattern in _DATA_FILES for folder in (Path(), Path("data")) for file in folder.glob(pattern)
    ]
    named = [file for file in files if "train" in file.name.lower()]
    chosen = max(named or files, key=lambda file: file.stat().st_size, default=None)
    return None if chosen is None else str(chosen)


def inspect_rows(paths: Sequence[str], method: str | None, sets: Sequence[str] = ()) -> DataFacts:
    """Inspect the first rows of the data, read with the settings `sets`; they determine the method if none is
    given. Raises the same `DataError` as training for data that cannot be read."""
    found = _inspect([DataSource(path) for path in paths], method or DEFAULT, sets)
    return found if method else replace(found, method=_METHODS.get(found.kind, DEFAULT))


def validation_sets(paths: Sequence[str]) -> list[str]:
    """The data sources that have a split for evaluation."""
    return [path for path in paths if path != DEMO and _has_validation(path)]


def _has_validation(path: str) -> bool:
    try:
        train, validation = (Origin.of(DataSource(path), split).files for split in _SPLITS)
    except DataError:
        return False
    return bool(validation) and validation != train


def _inspect(sources: Sequence[DataSource], method: str, sets: Sequence[str]) -> DataFacts:
    demo = [("model.path", DEMO, ""), ("data.train", DEMO, "")]
    # No file: one that is here is to be replaced, or stands beside the new one.
    config = load(Path(os.devnull), demo, sets, trains=False).data
    lengths: list[int] = []
    shape = kind = ""
    whole = True
    for source in sources:
        reader = Reader(
            source, "train", config, BadRows(config.skip_bad_rows), most=_LOOKED_AT + 1, method=method
        )
        if not reader.origin.files and source.path != DEMO:
            return DataFacts(method=method)
        rows = [row for _, row in islice(iter(reader), _LOOKED_AT + 1)]
        if not rows:
            raise reader.no_rows()
        whole = whole and len(rows) <= _LOOKED_AT
        lengths += [len(json.dumps(row, ensure_ascii=False, default=str)) for row in rows]
        if reader.recognised is not None and not shape:
            shape, kind = reader.recognised.name, reader.recognised.shape
    lengths.sort()
    longest = lengths[int((len(lengths) - 1) * 0.95)]
    return DataFacts(shape, method, len(lengths), whole, longest, known=True, kind=kind)


def wants_lora(model: str) -> bool:
    """Whether to propose an adapter: for a model that is large, or whose size is not known here."""
    if model == DEMO:
        return False
    weights = (
        [file.stat().st_size for file in Path(model).glob("*.safetensors")] if Path(model).is_dir() else []
    )
    return not weights or sum(weights) > _SMALL_BYTES


def as_toml(proposal: Proposal) -> str:
    """The proposal as a commented TOML file."""
    facts, full = proposal.facts, not proposal.lora
    rate = METHODS[proposal.method].lora_learning_rate / (10 if full else 1)
    usual = f"usual for {'all weights' if full else 'an adapter'}"
    if proposal.model == DEMO:
        rate, usual = DEMO_TRAINING["learning_rate"], "for the demo, which is tiny"
    longest = next((each for each in _LENGTHS if each * _CHARACTERS >= facts.characters), _LENGTHS[-1])
    eval_data = proposal.eval_data or ([DEMO] if [*proposal.data] == [DEMO] else [])
    held_out = facts.rows >= _HELD_OUT and not eval_data
    epochs = 1 if not facts.whole or facts.rows > _ONE_EPOCH else 3
    lines = [
        "# Written by `fmstune init`. `fmstune train --dry-run` checks it, `fmstune train` runs it;",
        "# `fmstune config explain KEY` explains a setting. Flags override the values here.",
        "",
        "[model]",
        f"path = {_text(proposal.model)}  # a directory, a name on the hub, or the demo",
        "",
        "[data]",
        f"# {facts.line()}",
        f"train = {_texts(proposal.data)}",
        *(
            [f"eval = {_texts(eval_data)}"]
            if eval_data
            else [
                f"{'' if held_out else '# '}eval_fraction = 0.1  # the fraction held out for evaluation"
                + ("" if held_out else ("; off, since there are few rows" if facts.known else ""))
            ]
        ),
        '# train_on = "responses"  # tokens in the loss: only the answers; "all" for every token',
        "",
        "[run]",
        f"method = {_text(proposal.method)}",
        "",
        "[training]  # any field of TRL's configuration",
        f"num_train_epochs = {epochs}  # passes over the data",
        f"learning_rate = {rate:g}  # {usual}",
        f"{'' if facts.known else '# '}max_length = {longest}  # tokens; longer rows are truncated",
        "# per_device_train_batch_size = 8  # `fmstune train --auto-batch` finds the largest that fits",
        "# gradient_accumulation_steps = 1",
        "",
        "[lora]  # an adapter instead of all weights",
        f"enabled = {str(proposal.lora).lower()}",
        "# r = 16",
        "",
        "[tracking]",
        f"trackers = {_texts(proposal.trackers, always=True)}  # see `fmstune trackers list`",
        "",
        "[params]  # metadata for all trackers, to find the run by",
        '# team = "nlp"',
        "",
    ]
    for parts, value in parse_sets(proposal.sets):
        _set(lines, parts[0], f"{dotted(parts[1:])} =", _inline(value))
    return "\n".join(lines)


def _set(lines: list[str], table: str, key: str, value: str) -> None:
    """Set a value (`key` is like `seed =`) in the lines of a file, in place of what is proposed."""
    header = next((number for number, line in enumerate(lines) if line.startswith(f"[{table}]")), None)
    if header is None:
        lines += [f"[{table}]", f"{key} {value}", ""]
        return
    end = lines.index("", header)
    kept = [line for line in lines[header + 1 : end] if not line.removeprefix("# ").startswith(key)]
    lines[header + 1 : end] = [*kept, f"{key} {value}"]


def _inline(value: Any) -> str:
    """A value on one line of TOML."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(name)} = {_inline(each)}' for name, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # a JSON string is a TOML string


def _texts(texts: Sequence[str], *, always: bool = False) -> str:
    if len(texts) == 1 and not always:
        return _text(texts[0])
    return f"[{', '.join(map(_text, texts))}]"
