"""Whether a tokenizer splits texts as its tokenizer.json says.

transformers rebuilds some classes (GPT2Tokenizer, GPTNeoXTokenizer) from the vocabulary of the file, with
the class's own rules: a model that splits numbers into digits would be tuned on other tokens than it knows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from fmstune.text import shown

_PROBES = (
    "It is 12345 of 678",
    "I'll don't",
    "a  b\n\n c\td",
    "snake_case camelCase f(x[0])",
    "Zoë naïve",
    "日本語 привет",
    "…—“ok”",
)


def unlike_its_file(tokenizer: PreTrainedTokenizerBase, model: str) -> str | None:
    """A message about a tokenizer that splits texts otherwise than the tokenizer.json in the directory of its
    `model`; `None` if it does not, or there is none."""
    file = Path(model) / "tokenizer.json"
    if not file.is_file() or not tokenizer.is_fast:
        return None
    backend: Any = tokenizer.backend_tokenizer
    settings = json.loads(file.read_bytes())
    if all(_state(getattr(backend, name)) == settings.get(name) for name in ("normalizer", "pre_tokenizer")):
        return None
    saved = Tokenizer.from_file(str(file))
    saved.no_truncation()
    saved.no_padding()
    for text in _PROBES:
        used = tokenizer(text, add_special_tokens=False)["input_ids"]
        own = saved.encode(text, add_special_tokens=False).ids
        if used != own:
            return (
                f"transformers splits texts otherwise than {file} says, as its class for this model "
                f"({type(tokenizer).__name__}) has rules of its own: {shown(text)} is {len(used)} instead of "
                f"{len(own)} tokens. If the file is right, set "
                '"tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json'
            )
    return None


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())
