"""Find settings of fmstune's own tables that have no effect in a run; see `unused`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from fmstune.config.methods.known import METHODS
from fmstune.config.paths.data import NoFiles, exists, find_files, kind_of
from fmstune.config.schema.data import DataSource
from fmstune.config.schema.tables import TABLES, RunConfig
from fmstune.text import shown_key


def unused_of_tables(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The unused settings that were set to a value other than the default, by dotted key, with the reason."""
    for key, why in _reasons(config):
        table, _, name = key.partition(".")
        if table == "trackers":
            yield key, why
        elif config.origins.get(key, "default") != "default":
            default = next(each.default for each in dataclasses.fields(TABLES[table]) if each.name == name)
            if getattr(getattr(config, table), name) != default:
                yield key, why


def _reasons(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield from _model(config)
    yield from _data(config)
    if METHODS[config.run.method].compares and config.training.get("disable_dropout", True):
        yield "lora.dropout", f"training.disable_dropout is true, the default of {config.run.method}"
    for table, switch in (("lora", "lora.enabled"), ("prompt_tuning", "prompt_tuning.enabled")):
        if not getattr(config, table).enabled:
            yield from ((f"{table}.{name}", f"{switch} is not set") for name in _names(TABLES[table]))
    if config.run.early_stopping_patience is None:
        yield "run.early_stopping_threshold", "run.early_stopping_patience is not set"
    if not config.samples.prompts and not config.samples.rows:
        yield "samples.max_new_tokens", "neither samples.prompts nor samples.rows is set"
    trackers = config.tracking.trackers
    if not trackers:
        yield from ((f"tracking.{name}", "the run has no tracker") for name in _names(TABLES["tracking"]))
    for name in config.trackers:
        if name not in trackers:
            yield shown_key("trackers", name), "the run does not have this tracker; add it with --tracker"


def _names(table: Any) -> list[str]:
    return [each.name for each in dataclasses.fields(table)]


def _model(config: RunConfig) -> Iterator[tuple[str, str]]:
    path = config.model.path
    if path == "demo" or exists(config.base_dir / path):
        yield "model.revision", "the model is not from the hub"


def _data(config: RunConfig) -> Iterator[tuple[str, str]]:
    data = config.data
    if not data.streaming:
        yield "data.shuffle_buffer", "data.streaming is not set"
    if METHODS[config.run.method].compares:
        yield "data.history", f"{config.run.method} learns only the last answer of each row"
    for name in ("max_rows", "template", "columns"):
        sources = data.train if name == "max_rows" else (*data.train, *data.eval)
        if sources and all(getattr(source, name) is not None for source in sources):
            yield f"data.{name}", "each source has its own"
    if not _may_hold_texts((*data.train, *data.eval), config):
        yield "data.text_rows", "no source is a .txt file"


def _may_hold_texts(sources: Sequence[DataSource], config: RunConfig) -> bool:
    for source in sources:
        if source.path == "demo":
            continue
        try:
            found = find_files(source.path, source.split or "train", base=config.base_dir)
        except NoFiles:  # reported when the data is read
            return True
        if found is None or any(kind_of(file) == ".txt" for file in found.files):
            return True  # a name on the hub may hold text files
    return False
