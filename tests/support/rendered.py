"""Rows as the model sees them, with tokenizers that differ from the demo's in one respect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fmstune import demo
from fmstune.config.schema.tables import DataConfig, ModelConfig
from fmstune.data.prepare import PreparedData, prepare
from fmstune.data.tokens.table import IGNORED
from fmstune.models.load import load_tokenizer


def tokenizer(template: str | None = None, **tokens: str) -> PreTrainedTokenizerBase:
    """The demo's byte-level tokenizer, with another template and with special tokens of other names."""
    found = load_tokenizer(ModelConfig(path="demo"))
    if template is not None:
        found.chat_template = template
    found.add_special_tokens(tokens)
    return found


def adding(prefix: str, suffix: str, *, trim: bool = False) -> PreTrainedTokenizerBase:
    """The demo's tokenizer, which itself adds special tokens before and after each text."""
    inner = Tokenizer.from_file(str(demo.model_dir() / "tokenizer.json"))
    names = [name for name in (prefix, suffix) if name]
    inner.add_special_tokens(names)
    inner.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=trim, add_prefix_space=False),
            processors.TemplateProcessing(
                single=f"{prefix} $A {suffix}".strip(),
                special_tokens=[(name, inner.token_to_id(name)) for name in names],
            ),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=prefix or None, eos_token=suffix or None)


def prepared(
    tmp_path: Path, rows: list[Any], using: PreTrainedTokenizerBase, train_on: str = "responses"
) -> PreparedData:
    """These rows, prepared as in a run."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(DataConfig(train=str(path), train_on=train_on), using, None, seed=0)


def seen_and_trained(
    tmp_path: Path, row: Any, using: PreTrainedTokenizerBase, train_on: str = "responses"
) -> tuple[str, str]:
    """The text of a row as the model sees it, and the part of it that is trained."""
    data = prepared(tmp_path, [row], using, train_on).train[0]
    assert data["labels"][0] == IGNORED
    assert all(
        label in (IGNORED, token) for token, label in zip(data["input_ids"], data["labels"], strict=True)
    )
    trained = [label for label in data["labels"] if label != IGNORED]
    return using.decode(data["input_ids"]), using.decode(trained)


def trained(tmp_path: Path, row: Any, using: PreTrainedTokenizerBase, train_on: str = "responses") -> str:
    """The part of a row's text that is trained."""
    return seen_and_trained(tmp_path, row, using, train_on)[1]


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation of user and assistant in turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant") * len(contents)
    return first + [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
