"""What the data of another tool's configuration is here: its sources, and the tokens that it trains on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.config.schema.data import MAPPED_COLUMNS
from fmstune.config.translate.foreign import COMPONENT, Foreign
from fmstune.config.translate.rule import Here, Left, Rule

_FIELDS = {
    "field_messages": "messages",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
    "field_tools": "tools",
    "field_prompt": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_label": "label",
    "text_column": "text",
    "field": "text",
}
"""Axolotl's names of columns."""
_COLUMNS = {"query": "input", "prompt": "instruction", "response": "output", "kto_tag": "label"}
"""LLaMA-Factory's names of columns, where they differ."""
_RECOGNISED = (
    "type",
    "ds_type",
    "message_property_mappings",
    "roles",
    "chat_template",
    "field_thinking",
    "template_thinking_key",
    "train_on_eos",
    "train_on_eot",
    "drop_system_message",  # is one of `differences`
    "conversation",
    "message_field_role",
    "message_field_content",
    "message_field_training",
    "message_field_training_detail",
)
"""Settings of a source in axolotl that only say what its rows look like, which fmstune sees."""
_OF_COMPONENTS = {
    "alpaca_dataset": ("tatsu-lab/alpaca", True),
    "alpaca_cleaned_dataset": ("yahma/alpaca-cleaned", True),
    "samsum_dataset": ("Samsung/samsum", False),
    "grammar_dataset": ("liweili/c4_200m", False),
    "slimorca_dataset": ("Open-Orca/SlimOrca-Dedup", False),
    "stack_exchange_paired_dataset": ("lvwerra/stack-exchange-paired", False),
    "hh_rlhf_helpful_dataset": ("RLHFlow/HH-RLHF-Helpful-standard", False),
    "cnn_dailymail_articles_dataset": ("ccdv/cnn_dailymail", True),
    "wikitext_dataset": ("EleutherAI/wikitext_document_level", True),
    "text_completion_dataset": ("", True),
}
"""torchtune's data sets: where they come from, and whether they train on all tokens unless told not to."""
_COLUMNS_OF_COMPONENTS = {"conversation_column": "messages", "column": "text"}
_OF_SOURCE = (
    COMPONENT,
    "source",
    "data_files",
    "split",
    "subset",
    "name",
    "column_map",
    *_COLUMNS_OF_COMPONENTS,
    "packed",
    "train_on_input",
    "conversation_style",
    "max_seq_len",
    "add_eos",
    "split_across_pack",
)
"""Settings of torchtune's data sets that are translated; `train_on_input` and `packed` are the run's."""
_ANSWERING = {"assistant", "gpt", "model"}
_ROLES = ({"role", "from"}, {"content", "value"})
_LIST = "dataset_info.json"
_OF_PAIRS = ("dpo", "ipo", "orpo", "simpo")
"""axolotl's methods whose rows have `chosen` and `rejected`, unless they are called otherwise."""


def named_sources(key: str, value: Any) -> Here:
    """Files or names on the hub as sources. Raises `Left` for anything else."""
    if not all(isinstance(path, str) for path in _all(value)):
        raise Left("Name the file or the hub's data set in data.train.")
    return {key: [{"path": path} for path in _all(value)]}


def _sources(key: str) -> Rule:
    def rule(value: Any, theirs: Foreign) -> Here:
        tables = [
            _axolotl(each, theirs) if isinstance(each, Mapping) else {"path": str(each)}
            for each in _all(value)
        ]
        return {key: tables}

    return rule


def _all(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _mapping(columns: Mapping[str, str]) -> Here:
    """The columns of a source, if one has another name: the others are then to be named, too, as those that
    are mapped count alone if they are all that a row needs."""
    return {"columns": dict(columns)} if any(ours != there for ours, there in columns.items()) else {}


def _axolotl(table: Mapping[str, Any], theirs: Foreign) -> dict[str, Any]:
    """One of axolotl's data sets as a source. Raises `Left`."""
    files, path = table.get("data_files"), table.get("path")
    if files and (table.get("ds_type") or path in ("json", "csv", "parquet", "text")):
        if len(_all(files)) > 1:
            raise Left("Use a table [[data.train]] for each of its data_files.")
        (path,) = _all(files)
    if not isinstance(path, str):
        raise Left("Name the file or the hub's data set in data.train.")
    source: dict[str, Any] = {"path": path}
    columns: dict[str, str] = {}
    for name, value in table.items():
        if value in (None, "", [], {}, False) or name in ("path", "data_files") or name in _RECOGNISED:
            if name == "type" and isinstance(value, Mapping):
                raise Left("Its type is a format of its own: use data.template or data.columns.")
            if name == "message_property_mappings":
                _require_known_roles(value)
        elif name == "roles_to_train":
            _roles_to_train(value, theirs)
        elif name in ("split", "train_on_split"):
            source["split"] = value
        elif name in ("name", "subset"):
            source["subset"] = value
        elif name in ("revision", "max_rows"):
            source[name] = value
        elif name in _FIELDS:
            columns[_FIELDS[name]] = str(value)
        else:
            raise Left(f"Its setting {name} has no translation: write the source by hand in data.train.")
    if theirs.get("rl") in _OF_PAIRS:
        columns = {"chosen": "chosen", "rejected": "rejected"} | columns
    return source | _mapping(columns)


def _roles_to_train(value: Any, theirs: Foreign) -> Here:
    """None, for the answers, which are learnt by default. Raises `Left`."""
    if {str(role) for role in _all(value)} <= _ANSWERING:
        return {}
    raise Left(
        "roles_to_train: fmstune learns the assistant's turns, or all tokens (data.train_on): write the "
        "source by hand in data.train."
    )


def _require_known_roles(mappings: Mapping[str, Any]) -> None:
    for name, there in mappings.items():
        if name in ("role", "content") and there not in _ROLES[name == "content"]:
            raise Left(f"Its messages have the field {there}: convert them with data.handler.")


def _named(key: str) -> Rule:
    """LLaMA-Factory's names of data sets, which stand in a file; or the name of one on the hub."""

    def rule(value: Any, theirs: Foreign) -> Here:
        if isinstance(value, Mapping) or (isinstance(value, list) and isinstance(value[0], Mapping)):
            return _components(key, value)
        names = [name.strip() for each in _all(value) for name in str(each).split(",") if name.strip()]
        if theirs.tool == "ms-swift":
            return {key: [_sampled(name) for name in names]}
        if theirs.tool != "LLaMA-Factory":
            return {key: [{"path": name} for name in names]}
        folder = Path(str(theirs.get("dataset_dir", "data")))
        listed = _listed(folder if (folder / _LIST).is_file() else theirs.folder / folder)
        return {key: [_llama_factory(name, listed, folder) for name in names]}

    return rule


def _sampled(name: str) -> dict[str, Any]:
    """A data set of ms-swift: `name:subset#rows`."""
    path, _, rows = name.partition("#")
    path, _, subset = path.partition(":")
    source: dict[str, Any] = {"path": path}
    if subset:
        source["subset"] = subset
    if rows:
        source["max_rows"] = int(rows)
    return source


def _listed(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / _LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Left(f"It is described in {folder / _LIST}, which is not here: name its file.") from None
    return found if isinstance(found, Mapping) else {}


def _llama_factory(name: str, listed: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    about = listed.get(name)
    if not isinstance(about, Mapping):
        raise Left(f"{name} is not in {folder / _LIST}: name its file.")
    if file := about.get("file_name"):
        source: dict[str, Any] = {"path": str(folder / str(file))}
    elif hub := about.get("hf_hub_url"):
        source = {"path": str(hub)}
    else:
        raise Left(f"{name} has neither a file_name nor an hf_hub_url in {folder / _LIST}.")
    source |= {ours: about[ours] for ours in ("subset", "split") if about.get(ours)}
    if about.get("num_samples"):
        source["max_rows"] = about["num_samples"]
    tags = about.get("tags") or {}
    _require_known_roles(
        {"role": tags.get("role_tag", "role"), "content": tags.get("content_tag", "content")}
    )
    columns = {}
    given = about.get("columns") or {}
    for theirs, there in given.items():
        # A prompt alone is a text to learn as a whole, for the stage `pt`.
        ours = "text" if given.keys() == {"prompt"} else _COLUMNS.get(theirs, theirs)
        if ours not in MAPPED_COLUMNS:
            raise Left(f"{name} has the column {theirs}, which fmstune does not train on.")
        if there:
            columns[ours] = str(there)
    return source | _mapping(columns)


def _components(key: str, value: Any) -> Here:
    """torchtune's data sets."""
    sources, on_all, here = [], set(), Here()
    for table in _all(value):
        name = str(table.get(COMPONENT, "")).rpartition(".")[2]
        path, default = _OF_COMPONENTS.get(name, ("", False))
        path = table.get("source") or path
        if path in ("json", "csv", "parquet", "text"):
            path = table.get("data_files")
        if not path or not isinstance(path, str):
            raise Left("Name the file or the hub's data set in data.train.")
        source: dict[str, Any] = {"path": path}
        if table.get("split") not in (None, "train"):
            source["split"] = table["split"]
        subset = table.get("subset") or table.get("name")
        source |= {"subset": subset} if subset else {}
        columns = {
            ours: str(table[theirs]) for theirs, ours in _COLUMNS_OF_COMPONENTS.items() if table.get(theirs)
        }
        source |= _mapping(columns | _mapped(table.get("column_map") or {}))
        if beyond := [option for option, value in table.items() if value and option not in _OF_SOURCE]:
            raise Left(f"Its setting {beyond[0]} has no translation: write the source by hand in data.train.")
        if table.get("packed"):
            here["training.packing"] = True
        on_all.add(bool(table.get("train_on_input", default)))
        sources.append(source)
    if key == "data.train" and on_all == {True}:
        here["data.train_on"] = "all"
    return {key: sources, **here}


def _mapped(columns: Mapping[str, Any]) -> dict[str, str]:
    if unknown := [name for name in columns if name not in MAPPED_COLUMNS]:
        raise Left(f"Its column {unknown[0]} has no counterpart: use data.columns.")
    return {name: str(there) for name, there in columns.items()}


def _of_mlx(value: Any, theirs: Foreign) -> Here:
    """A folder with train.jsonl and valid.jsonl, or a data set on the hub."""
    folder = Path(str(value))
    if theirs.tool != "mlx-lm":
        return {"data.train": [{"path": str(value)}]}
    if not folder.is_dir() and "/" in str(value) and not str(value).startswith((".", "/")):
        return {"data.train": [{"path": str(value)}], "data.eval": [{"path": str(value), "split": "valid"}]}
    held = folder / "valid.jsonl"
    evaluated = {} if folder.is_dir() and not held.exists() else {"data.eval": [{"path": str(held)}]}
    return {"data.train": [{"path": str(folder / "train.jsonl")}], **evaluated}


def _held_out(value: Any, theirs: Foreign) -> Here:
    if value and value >= 1:
        raise Left("data.eval_fraction is a fraction of the rows, not a number of them.")
    return {"data.eval_fraction": value} if value else {}


def _on_all(value: Any, theirs: Foreign) -> Here:
    return {"data.train_on": "all"} if value is True else {}


def _on_answers(value: Any, theirs: Foreign) -> Here:
    """TRL's, for messages and for prompts with completions."""
    if value is True:
        return {"data.train_on": "responses"}
    if theirs.get("assistant_only_loss") is True or theirs.get("completion_only_loss") is True:
        return {}
    return {"data.train_on": "all"}


def _masks_prompt(value: Any, theirs: Foreign) -> Here:
    return {"data.train_on": "responses" if value else "all"}


def _split(value: Any, theirs: Foreign) -> Here:
    """TRL's split of its one data set."""
    if value == "train":
        return {}
    raise Left("")


DATA_RULES: Mapping[str, Rule] = {
    "datasets": _sources("data.train"),
    "pretraining_dataset": _sources("data.train"),
    "test_datasets": _sources("data.eval"),
    "dataset": _named("data.train"),
    "dataset_name": _named("data.train"),
    "eval_dataset": _named("data.eval"),
    "val_dataset": _named("data.eval"),
    "dataset_val": _named("data.eval"),
    "data": _of_mlx,
    "val_set_size": _held_out,
    "val_size": _held_out,
    "split_dataset_ratio": _held_out,
    "train_on_inputs": _on_all,
    "roles_to_train": _roles_to_train,
    "train_on_prompt": _on_all,
    "assistant_only_loss": _on_answers,
    "completion_only_loss": _on_answers,
    "train_on_input": _on_all,
    "mask_prompt": _masks_prompt,
    "dataset_train_split": _split,
}
