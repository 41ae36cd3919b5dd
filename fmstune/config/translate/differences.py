"""What fmstune does otherwise than another tool, and no setting of the translation changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fmstune.config.translate.foreign import COMPONENT, Foreign

_SOURCES = ("datasets", "test_datasets", "pretraining_dataset", "dataset", "dataset_val")
_AS_WRITTEN = re.compile(
    r"(bradley_terry\.)?chat_template|completion|input_output|pretrain|_|chatml\.|llama3\."
)
"""Types of axolotl's whose text is that of the row or of the chat template."""
_PROMPTED = re.compile(r"(alpaca|alpaca_cleaned|grammar|samsum)_dataset")
"""torchtune's data sets with a prompt of their own."""
_ENDS = ("train_on_eos", "train_on_eot")


def differences(theirs: Foreign, here: Mapping[str, Any]) -> list[str]:
    """Sentences, for a configuration that was translated to `here`."""
    return list(_differences(theirs, here))


def _differences(theirs: Foreign, here: Mapping[str, Any]) -> Iterator[str]:
    if theirs.tool == "axolotl" and theirs.get("excess_length_strategy") != "truncate":
        yield "Rows longer than sequence_len: axolotl drops them, fmstune truncates them."
    if theirs.tool == "ms-swift" and not theirs.get("truncation_strategy"):
        yield "Rows longer than max_length: ms-swift leaves them out, fmstune truncates them."
    if theirs.tool == "mlx-lm" and not theirs.get("num_layers"):
        yield (
            "mlx-lm adapts the last 16 layers unless num_layers says otherwise, fmstune all of them: "
            "lora.target_modules may be a regular expression."
        )
    if theirs.tool == "TRL" and here.get("run.method", "sft") == "sft" and "data.train_on" not in here:
        yield (
            "TRL learns all tokens of rows with `messages`, fmstune only the answers, unless "
            'data.train_on = "all".'
        )
    tables = list(_tables(theirs))
    remedy = '; for all models, set model.chat_template = "alpaca"' if theirs.tool == "axolotl" else ""
    for name in sorted({name for table in tables if (name := _prompted(table))}):
        yield (
            f"{name} writes each question into a prompt such as `### Instruction:`, fmstune only for a model "
            f"without a chat template{remedy}. `fmstune data` shows the text."
        )
    if any(table.get("train_on_input") for table in tables) and "data.train_on" not in here:
        yield "train_on_input of one data set: fmstune has data.train_on for all, which stays the answers."
    if any(table.get("drop_system_message") for table in tables):
        yield "drop_system_message: fmstune learns with the system messages; data.handler can remove them."
    ends = {str(table[name]) for table in tables for name in _ENDS if table.get(name)}
    for value in sorted(ends - {"turn"}):
        yield f"train_on_eos = {value}: fmstune learns the end of each answer that it learns, as with turn."
    templates = {str(table["chat_template"]) for table in tables if table.get("chat_template")}
    for name in sorted(templates - {"tokenizer_default", here.get("model.chat_template")}):
        yield f"chat_template = {name} of a data set: fmstune has one for all, model.chat_template."


def _tables(theirs: Foreign) -> Iterator[Mapping[str, Any]]:
    for name in _SOURCES:
        value = theirs.settings.get(name)
        yield from (
            table for table in (value if isinstance(value, list) else [value]) if isinstance(table, Mapping)
        )


def _prompted(table: Mapping[str, Any]) -> str:
    """The name of a format that puts questions into a prompt; empty for others."""
    kind = table.get("type")
    if isinstance(kind, str) and not _AS_WRITTEN.match(kind):
        return f"The type {kind}"
    component = str(table.get(COMPONENT, "")).rpartition(".")[2]
    return component if _PROMPTED.fullmatch(component) else ""
