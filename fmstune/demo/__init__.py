"""The demo: a tiny model whose weights are drawn at random, and a small synthetic data set.

The files are made by `make_demo`; nothing is fetched. Importing this imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HERE = Path(__file__).parent


def model_dir() -> Path:
    """The directory of the demo model's configuration and tokenizer; it holds no weights."""
    return _HERE / "model"


def data_file(split: Literal["train", "eval"]) -> Path:
    """The demo's training or evaluation rows, as JSON lines of chats."""
    return _HERE / "data" / f"{split}.jsonl"


def seed_of(name: str) -> int | None:
    """The seed in `demo:42`, which is how an adapter names the weights that it was made for."""
    base, _, seed = name.partition(":")
    return int(seed) if base == "demo" and seed.isdecimal() else None


def is_demo(name: str) -> bool:
    """Whether `model.path` means the demo's model."""
    return name == "demo" or seed_of(name) is not None


def build_model(seed: int = 42, *, reward: bool = False) -> PreTrainedModel:
    """The demo model in float32, its weights drawn from `seed`; torch's own random state is left alone.

    With `reward` it gives each text one number instead of predicting its words.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    config = AutoConfig.from_pretrained(model_dir())
    if reward:
        config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = kind.from_config(config, dtype=torch.float32)
    return model
