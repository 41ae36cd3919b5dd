"""Check the table `[data]`, without reading data: file names, templates, mixtures, streaming."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fmstune.config.check.suggest import hint, similar_file
from fmstune.config.paths.data import COMPRESSED, KINDS, NoFiles, exists, find_files
from fmstune.config.schema.data import MAPPED_COLUMNS, DataSource, eval_sets
from fmstune.config.schema.prompt_template import parse_template
from fmstune.config.schema.tables import RunConfig
from fmstune.text import shown, shown_key

_SET_NAME = re.compile(r"[\w-]+", re.ASCII)


def data_problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The problems, as (key, message)."""
    data = config.data
    reported: set[tuple[str, str]] = set()
    for key, sources in (("data.train", data.train), ("data.eval", data.eval)):
        split = "train" if key == "data.train" else "validation"
        for number, source in enumerate(sources, 1):
            name = f"{key}[{number}]" if len(sources) > 1 else key
            problem = _missing(source, split, config.base_dir)
            if problem is not None and (source.path, problem) not in reported:
                reported.add((source.path, problem))
                yield key, f"{name} = {shown(source.path)}: {problem}"
            for what in _form(source.template, source.columns, name):
                yield key, what
    for problem in _form(data.template, None, "data"):
        yield "data.template", problem
    for problem in _form(None, data.columns, "data"):
        yield "data.columns", problem
    yield from _mixture(config)
    yield from _sets(config)
    yield from _streaming(config)
    if data.handler is not None and not all(data.handler.partition(":")):
        yield (
            "data.handler",
            f"data.handler = {shown(data.handler)} is not of the form module:function, as in my_code:clean.",
        )


_SEVERAL = "Give several sources as a list, or with several --data."


def _missing(source: DataSource, split: str, base: Path) -> str | None:
    """Why a data source that looks like files has none; names on the hub and `demo` are not checked."""
    name = source.path
    if name == "demo":
        return None
    try:
        if find_files(name, source.split or split, chosen=source.split is not None, base=base) is not None:
            return None
    except NoFiles as error:
        return f"{error} {_SEVERAL}" if "," in name else str(error)
    for suffix in (*KINDS, *(kind + packed for kind in KINDS for packed in COMPRESSED)):
        if exists(base / (name + suffix)):
            return f"there is no such file. Did you mean {name}{suffix}?"
    if "/" in name:
        return None  # may be owner/name on the hub
    if there := _in_dataset_info(name, base):
        return f"there is no such file. Did you mean {there}, as dataset_info.json says?"
    if "," in name:
        return f"there is no such file. {_SEVERAL}"
    return (
        f"there is no such file, and names on the hub have the form owner/name."
        f"{similar_file(Path(name), base)}"
    )


def _in_dataset_info(name: str, base: Path) -> str | None:
    """The file or hub name of a data set in LLaMA-Factory's dataset_info.json, here or in data/."""
    for folder in (base, base / "data"):
        try:
            found = json.loads((folder / "dataset_info.json").read_bytes())[name]
            file = found.get("file_name")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if isinstance(file, str) and exists(folder / file):
            return str((folder / file).relative_to(base))
        return found["hf_hub_url"] if isinstance(found.get("hf_hub_url"), str) else None
    return None


def _form(template: str | None, columns: Mapping[str, str] | None, name: str) -> Iterator[str]:
    if template is not None:
        try:
            parse_template(template)
        except ValueError as error:
            chat = (
                ""
                if "{" in template or " " in template
                else " A model's chat template is model.chat_template."
            )
            yield f"{name}.template = {shown(template)}: {error}.{chat}"
    for column in columns or ():
        if column not in MAPPED_COLUMNS:
            close = hint(column, MAPPED_COLUMNS) or f" Available: {', '.join(MAPPED_COLUMNS)}."
            yield (
                f"{name}.columns: fmstune has no column {shown_key(column)}; write fmstune's name = the name "
                f'in the data, as in {{question = "title"}}.{close}'
            )
    if template is not None and columns:
        yield f"{name}: set a template or columns, not both."


def _mixture(config: RunConfig) -> Iterator[tuple[str, str]]:
    data = config.data
    if data.template is not None and data.columns:
        yield "data.template", "set data.template or data.columns, not both."
    weighted = [source.weight is not None for source in data.train]
    if any(weighted) and not all(weighted):
        number = weighted.index(False) + 1
        yield (
            "data.train",
            f"data.train[{number}] has no weight, but other sources have: set a weight for all, or for none.",
        )
    if any(source.weight is not None for source in data.eval):
        yield "data.eval", "data.eval: evaluation data does not take a weight; leave it out."


def _sets(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Problems of the names of evaluation sets."""
    data = config.data
    if any(source.name is not None for source in data.train):
        yield (
            "data.train",
            "data.train: only evaluation data takes a name; the part of a data set is its subset, or its "
            "split.",
        )
    sets = eval_sets(data.eval)
    for name in sets:
        if not _SET_NAME.fullmatch(name):
            yield (
                "data.eval",
                f"data.eval: the name {shown(name)} is not one for metrics: use letters, digits, - and _.",
            )
    if not sets:
        return
    number = next((at for at, source in enumerate(data.eval, 1) if source.name is None), None)
    if number is not None:
        yield (
            "data.eval",
            f"data.eval[{number}] has no name, but other sources have: set a name for all, or for none.",
        )
    key = "training.batch_eval_metrics"
    if config.training.get("batch_eval_metrics"):
        yield (
            key,
            f"{key} does not work with the names of evaluation sets (data.eval): leave one of them out.",
        )


def _streaming(config: RunConfig) -> Iterator[tuple[str, str]]:
    data, training = config.data, config.training
    if not data.streaming:
        return
    if training.get("max_steps", -1) <= 0:
        yield (
            "data.streaming",
            "data.streaming = true needs a number of steps, since the number of rows is not known: set "
            "training.max_steps (--max-steps).",
        )
    if data.eval_fraction:
        yield (
            "data.eval_fraction",
            "data.eval_fraction needs the number of rows, which is not known with data.streaming: add "
            "evaluation data (--eval-data).",
        )
    if training.get("precompute_ref_log_probs"):
        yield (
            "training.precompute_ref_log_probs",
            "training.precompute_ref_log_probs needs all rows in advance, so it does not work with "
            "data.streaming: leave one of them out.",
        )
