"""The demo: a tiny model with random weights, and a small synthetic data set.

`make_demo` creates the files; nothing is downloaded. Importing this imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HERE = Path(__file__).parent


def model_dir() -> Path:
    """The directory of the demo model's configuration and tokenizer; it contains no weights."""
    return _HERE / "model"


def data_file(split: Literal["train", "eval"]) -> Path:
    """The demo's training or evaluation rows: chats, as JSON lines."""
    return _HERE / "data" / f"{split}.jsonl"


def seed_of(name: str) -> int | None:
    """The seed in `demo:42`, an adapter's name for the weights that it was trained on."""
    base, _, seed = name.partition(":")
    return int(seed) if base == "demo" and seed.isdecimal() else None


def is_demo(name: str) -> bool:
    """Whether `model.path` is the demo model."""
    return name == "demo" or seed_of(name) is not None


def build_model(seed: int = 42, *, reward: bool = False, attention: str | None = None) -> PreTrainedModel:
    """Build the demo model in float32, with random weights from `seed`; torch's random state does not change.

    With `reward`, it scores text instead of predicting it; `attention` is its `attn_implementation`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    config = AutoConfig.from_pretrained(model_dir())
    if reward:
        config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = kind.from_config(config, dtype=torch.float32, attn_implementation=attention)
    return model
