"""The table `[data]` and its data sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fmstune.config.check.suggest import hint
from fmstune.config.check.typed import read_dataclass
from fmstune.config.check.words import kind_of, shown_for
from fmstune.errors import ConfigError

MAPPED_COLUMNS = (
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "question",
    "answer", "query", "response", "context", "history", "system", "system_prompt", "tools", "text",
    "input_ids", "labels", "chosen", "rejected", "label", "margin", "weight", "train_on_input",
    "chat_template_kwargs",
)  # fmt: skip
"""The columns that `columns` can map."""


@dataclass(frozen=True)
class DataSource:
    """One source of rows: an entry of `data.train` or `data.eval`."""

    path: str = field(
        metadata={"help": "A file, a glob, a directory (also of save_to_disk), a hub name, `demo`."}
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "The split to use, or a part of it (train[:10%]). Default: train, and validation for "
            "evaluation data."
        },
    )
    subset: str | None = field(
        default=None, metadata={"help": "The configuration, for a data set on the hub that has several."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "The branch, tag or commit of a data set on the hub; a run pins it."}
    )
    weight: float | None = field(
        default=None, metadata={"help": "Its share of the mixture, relative to other sources.", "above": 0}
    )
    max_rows: int | None = field(
        default=None,
        metadata={"help": "The maximum number of rows to use. Default: data.max_rows.", "min": 1},
    )
    columns: Mapping[str, str] | None = field(
        default=None, metadata={"help": "The names of its columns. Default: data.columns."}
    )
    template: str | None = field(default=None, metadata={"help": "Its template. Default: data.template."})
    name: str | None = field(
        default=None,
        metadata={"help": "The evaluation set that its rows belong to, with metrics of its own."},
    )


def read_sources(value: Any, *, where: str, key: str) -> tuple[DataSource, ...]:
    """Read sources: a string, a list of strings, or tables. Raises `ConfigError`."""
    if isinstance(value, str):
        return (DataSource(value),) if value else ()
    if isinstance(value, Mapping):
        known = [field.name for field in fields(DataSource)]
        if value and not any(name in known or hint(name, known) for name in value):  # names of sets
            raise ConfigError(
                f"{where}: {key} has no path. To evaluate on several sets, use a table [[{key}]] for each, "
                "with its name and path."
            )
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(
            f"{where}: {key} = {shown_for(key, value)} is {kind_of(value)}; it takes a string, a list of "
            f"strings, or tables [[{key}]]."
        )
    return tuple(
        _read_source(item, where, f"{key}[{number}]" if len(value) > 1 else key)
        for number, item in enumerate(value, 1)
    )


def _read_source(item: Any, where: str, key: str) -> DataSource:
    if isinstance(item, DataSource):  # from Python code, not checked yet
        item = {name: value for name, value in asdict(item).items() if value is not None}
    table = {"path": item} if isinstance(item, str) else item
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: {key} is {kind_of(item)}; a source is a string, or a table with a path.")
    source = read_dataclass(DataSource, table, where=where, prefix=key)
    if not source.path:
        raise ConfigError(f"{where}: {key} is empty; set a file, a directory, a glob or a hub name.")
    return source


def written_sources(sources: tuple[DataSource, ...]) -> Any:
    """The sources in the shortest form that `read_sources` reads back unchanged."""
    tables = [{k: v for k, v in asdict(source).items() if v is not None} for source in sources]
    paths = [table["path"] for table in tables]
    if any(len(table) > 1 for table in tables):
        return tables
    return paths if len(paths) > 1 else "".join(paths)


def eval_sets(sources: Sequence[DataSource]) -> dict[str, list[DataSource]]:
    """The sources of each named set, in the order of the names; empty if they have none."""
    sets: dict[str, list[DataSource]] = {}
    for source in sources:
        if source.name is not None:
            sets.setdefault(source.name, []).append(source)
    return sets


def handler_name(handler: Any) -> str | None:
    """The name of a handler: `module:function`, also for a function passed from Python."""
    if handler is None or isinstance(handler, str):
        return handler
    name = getattr(handler, "__qualname__", type(handler).__qualname__)
    return f"{getattr(handler, '__module__', '')}:{name}"


@dataclass(frozen=True)
class DataConfig:
    """The table `[data]`. Sources may be written as in a file: `DataConfig(train="a.jsonl")`."""

    train: tuple[DataSource, ...] = field(
        default=(),
        metadata={
            "help": "Training data: files, directories, globs, hub names or `demo`. To mix several, use "
            "tables [[data.train]] with path, split, subset, weight, max_rows, columns and template.",
            "read": read_sources,
        },
    )
    eval: tuple[DataSource, ...] = field(
        default=(),
        metadata={
            "help": "Evaluation data, as for `train`. Tables [[data.eval]] with a name are sets with metrics "
            "of their own.",
            "read": read_sources,
        },
    )
    eval_fraction: float = field(
        default=0.0,
        metadata={"help": "The fraction of training rows to hold out for evaluation.", "min": 0, "below": 1},
    )
    train_on: str = field(
        default="responses",
        metadata={
            "help": "The tokens in the loss: the assistant's responses, or all.",
            "choices": ("responses", "all"),
        },
    )
    history: str = field(
        default="split",
        metadata={
            "help": "If a chat template renders earlier answers differently: split the conversation, so "
            "that each answer is learnt as the model will write it; learn only the last answer; or learn "
            "the history as the template renders it.",
            "choices": ("split", "last", "template"),
        },
    )
    reasoning: str = field(
        default="template",
        metadata={
            "help": "Reasoning that the chat template does not render: left out, as in the template, or "
            "kept, in the format of its model family.",
            "choices": ("template", "keep"),
        },
    )
    strict_chat: bool = field(
        default=False,
        metadata={
            "help": "Refuse conversations that must be changed to fit the chat template (consecutive "
            "questions, a system message that it does not support)."
        },
    )
    max_rows: int | None = field(
        default=None,
        metadata={"help": "The maximum number of rows to use from each source of training data.", "min": 1},
    )
    template: str | None = field(
        default=None,
        metadata={"help": "The text of a row, with columns in braces; the last column is learnt."},
    )
    columns: Mapping[str, str] | None = field(
        default=None,
        metadata={"help": 'The names of columns in the data: {question = "title", answer = "body"}.'},
    )
    handler: str | None = field(
        default=None,
        metadata={"help": "A function from a row to a row, a list of rows or None, as `module:function`."},
    )
    text_rows: str = field(
        default="line",
        metadata={"help": "The unit of a row in a .txt file.", "choices": ("line", "paragraph", "file")},
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "Leave out damaged rows, and list them in the run's skipped_rows.jsonl."},
    )
    cache: bool = field(
        default=True,
        metadata={"help": "Keep prepared data for later runs, in ~/.cache/fmstune or FMSTUNE_CACHE."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the training data during training, for data that does not fit into memory."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "The size of the shuffle buffer for streaming, in rows.", "min": 1}
    )

    def __post_init__(self) -> None:
        for name in ("train", "eval"):
            sources = read_sources(getattr(self, name), where="DataConfig", key=name)
            object.__setattr__(self, name, sources)
