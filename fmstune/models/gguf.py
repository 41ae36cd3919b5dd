"""GGUF files as base models: dequantized to plain weights on loading, and saved as such.

Of most architectures, transformers reads the sizes from a file's metadata, but not how its positions are
scaled, nor windows and caps of the attention. Without them the same weights compute something else, and the
tuned model would be saved like that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers.utils import cached_file

from fmstune.text import shown
from fmstune.transformers_compat import gguf_metadata, gguf_names, gguf_settings_read, gguf_splits

_NAMES = {
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_used_count": ("num_experts_per_tok",),
}
"""The names in configs of what transformers does not read for every architecture."""
_NOT_NEEDED = {
    "vocab_size", "context_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "expert_feed_forward_length", "expert_count",
    "expert_shared_feed_forward_length", "attention.causal", "rope.scaling.finetuned",
    "attention.key_length_swa", "attention.value_length_swa", "attention.shared_kv_layers",
    "embedding_length_per_layer_input",
}  # fmt: skip
"""What the tensors show, too: with another value they would not fit, and loading fails."""
_AS_GPT2 = {
    "default", "gpt-2", "phi-2", "olmo", "mpt", "jais", "roberta-bpe", "smollm", "starcoder", "refact",
    "command-r", "codeshell", "exaone", "minerva-7b",
}  # fmt: skip
"""Rules for splitting texts that are GPT-2's, which transformers uses for those that it does not know, or in
which no token has several digits, so that the result is the same."""
_FREQUENCIES, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The scaling of all Llama 3 models, whose files have the factors that follow from it."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says of its model: the `metadata` of its architecture, the names of its `tensors`, its
    `factors` of positions, by the name of their tensor, and the rules by which a `split` of bytes is made."""

    architecture: str
    metadata: Mapping[str, Any]
    tensors: tuple[str, ...]
    factors: Mapping[str, list[float]]
    split: str = "default"


def dequantized() -> dict[str, Any]:
    """Arguments of `from_pretrained` in addition to `gguf_file`, so that all weights are plain tensors."""
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def read_gguf(path: str, name: str, revision: str | None) -> GgufFile:
    """Read a file in a directory or on the hub, apart from its weights."""
    found = cached_file(path, name, revision=revision)
    said, tensors = gguf_metadata(found)
    architecture = str(said["general.architecture"])
    return GgufFile(
        architecture,
        {
            key.removeprefix(f"{architecture}."): value
            for key, value in said.items()
            if key.startswith(f"{architecture}.")
        },
        tensors,
        _factors(found) if {_FREQUENCIES, _SHORT, _LONG} & set(tensors) else {},
        str(said.get("tokenizer.ggml.pre", "default"))
        if said.get("tokenizer.ggml.model") == "gpt2"
        else "default",
    )


def _factors(file: str) -> dict[str, list[float]]:
    from gguf import GGUFReader  # takes seconds for a large vocabulary

    found = (each for each in GGUFReader(file).tensors if each.name in (_FREQUENCIES, _SHORT, _LONG))
    return {each.name: each.data.tolist() for each in found}


def complete(settings: Any, file: GgufFile) -> tuple[str, ...]:
    """Add to the `settings` that transformers has read from a file what it has left out. Returns what it says
    beyond that, as `key = value` or the name of a tensor."""
    config, read = settings.get_text_config(), gguf_settings_read(file.architecture)
    left = {key: value for key, value in file.metadata.items() if read is not None and key not in read}
    used = {key for key, value in left.items() if _set(config, key, value)} | _set_positions(config, file)
    unread = [f"{key} = {shown(value)}" for key, value in left.items() if key not in used | _NOT_NEEDED]
    if file.split not in _AS_GPT2 | gguf_splits():
        unread.append(f"tokenizer.ggml.pre = {file.split}")
    return (*unread, *(name for name in file.factors if name not in used))


def unplaced(model: Any, file: GgufFile) -> list[str]:
    """The tensors of the file for which the model has no place: transformers drops them."""
    placed = gguf_names(model, file.architecture)
    return [
        name
        for name in file.tensors
        if placed is not None and not {name, name.removesuffix(".weight")} & (placed | file.factors.keys())
    ]


def _set(config: Any, key: str, value: Any) -> bool:
    """Set a metadatum that a config has a name for; return whether it is that of the model now."""
    if key == "attention.sliding_window":
        if not 0 < value < (config.max_position_embeddings or math.inf):
            return True  # there is none, or it is as wide as the text
        if getattr(config, "use_sliding_window", None) is False:
            return False
    name = next((name for name in _NAMES.get(key, ()) if hasattr(config, name)), None)
    if name is None:
        return False
    setattr(config, name, value)
    return True


def _set_positions(config: Any, file: GgufFile) -> set[str]:
    """Set the scaling of positions. Returns the metadata and tensors that are part of the model now."""
    rotary = getattr(config, "rope_parameters", None)
    if not rotary:
        return set()
    full, said = rotary.get("full_attention", rotary), file.metadata
    if full.get("rope_type", "default") != "default":
        # The architecture's own.
        return {*(key for key in said if key.startswith("rope.")), *file.factors}
    used: set[str] = set()
    if "rope.freq_base" in said:
        full["rope_theta"] = said["rope.freq_base"]
        used.add("rope.freq_base")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = said.get("rope.dimension_count", head)
    if "partial_rotary_factor" in full:
        full["partial_rotary_factor"] = turned / head
    if turned == int(head * full.get("partial_rotary_factor", 1)):
        used.add("rope.dimension_count")
    scaling, needs = _scaling(config, file, full["rope_theta"], turned)
    full.update(scaling)
    return used | set(needs)


def _scaling(config: Any, file: GgufFile, theta: float, turned: int) -> tuple[dict[str, Any], Iterable[str]]:
    """The parameters of scaled positions, and the metadata and tensors that say so."""
    scaled = {
        key.removeprefix("rope.scaling."): value
        for key, value in file.metadata.items()
        if key.startswith("rope.scaling.")
    }
    kind, before = scaled.get("type"), scaled.get("original_context_length")
    keys = [f"rope.scaling.{key}" for key in ("type", "factor", "original_context_length")]
    if kind == "none":
        return {}, keys
    if kind == "linear":
        return {"rope_type": "linear", "factor": scaled["factor"]}, keys
    if kind == "yarn":
        found = {"rope_type": "yarn", "factor": scaled["factor"]}
        return found | ({"original_max_position_embeddings": before} if before else {}), keys
    if {_SHORT, _LONG} <= file.factors.keys() and before:
        config.original_max_position_embeddings = before
        found = {
            "rope_type": "longrope",
            "short_factor": file.factors[_SHORT],
            "long_factor": file.factors[_LONG],
            "original_max_position_embeddings": before,
        }
        if "attn_factor" in scaled:
            found["attention_factor"] = scaled["attn_factor"]
        return found, [*keys, "rope.scaling.attn_factor", _SHORT, _LONG]
    if _FREQUENCIES in file.factors:
        factors = file.factors[_FREQUENCIES]
        found = {"rope_type": "llama3", "factor": max(factors), **_LLAMA3}
        if _close(factors, _llama3_factors(max(factors), theta, turned)):
            return found, [_FREQUENCIES]
    return {}, []


def _llama3_factors(factor: float, theta: float, turned: int) -> list[float]:
    """What each frequency is divided by in a Llama 3 model, as in its reference implementation."""
    low, high, before = _LLAMA3.values()
    found = []
    for index in range(0, turned, 2):
        length = 2 * math.pi * theta ** (index / turned)
        smooth = min(1.0, max(0.0, (before / length - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def _close(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one, other, strict=True)
    )
