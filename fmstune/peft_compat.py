"""The parts of PEFT that have no public name, or that need arguments which the Trainer cannot pass."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MISSING_ADAPTER_KEYS = "missing adapter keys"
"""In PEFT's warning about weights that it did not find: `PeftModel.from_pretrained` does not return them."""


def unused_adapter_weights(model: Any, directory: str) -> list[str]:
    """The weights of an adapter's directory that have no place in its `PeftModel`, which has loaded them:
    `from_pretrained` drops them, and returns no report."""
    from peft import load_peft_weights, set_peft_model_state_dict

    renamed = getattr(model.get_base_model(), "_checkpoint_conversion_mapping", None)  # as PEFT itself
    weights = load_peft_weights(directory, device="cpu", key_mapping=renamed)
    return sorted(set_peft_model_state_dict(model, weights).unexpected_keys)


def refused_on_mamba(model: Any, name: str) -> bool:
    """Whether PEFT refuses LoRA on a module with this name, such as the projections of Mamba whose weights
    kernels read directly, bypassing an adapter. The public API fails for the adapter as a whole."""
    from peft import LoraConfig
    from peft.tuners import tuners_utils

    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    try:
        if check is not None:  # if PEFT renames it, PEFT itself reports what it refuses
            check(LoraConfig(), model, name)
    except ValueError:
        return True
    return False


def names_of_experts(model: Any) -> set[str]:
    """The names of linear layers by which PEFT adapts the experts and the router of a mixture, as they were
    before transformers made parameters of them (`w1`, `gate_proj`); empty for other models."""
    try:
        from peft.utils import transformers_weight_conversion as conversion

        kind = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)
        return set(conversion._MOE_TARGET_MODULE_MAPPING.get(kind, ()))
    except (ImportError, AttributeError):  # an earlier PEFT, which does not adapt them by these names
        return set()


@contextmanager
def embeddings_known(model: Any) -> Iterator[None]:
    """Let PEFT keep embeddings that an adapter trains whole tied to the head (`ensure_weight_tying`): it
    knows both by the names that they have in most architectures. In others (GPT-2, whose embeddings are
    `wte`), the head would stay as it was."""
    from peft.utils import constants

    known = constants.EMBEDDING_LAYER_NAMES
    before, base = list(known), model.get_base_model() if hasattr(model, "get_base_model") else model
    ends = [end for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end is not None]
    paths = [path for path, module in base.named_modules() if any(module is end for end in ends)]
    known.extend({path.rpartition(".")[2] for path in paths} - set(known))
    try:
        yield
    finally:
        known[:] = before


def save_without_question(model: Any, *, embeddings: bool) -> None:
    """Save a `PeftModel` without a request to the hub. By default PEFT asks the hub at each checkpoint
    whether the base model's vocabulary size differs, unless the base has a local config.json. The Trainer
    calls `save_pretrained` without a way to pass arguments."""
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=embeddings)


def resume_virtual_tokens(model: Any) -> None:
    """Make the virtual tokens of a `PeftModel` resumable: PEFT's `load_adapter`, which the Trainer calls,
    loads them only for inference."""
    from peft import load_peft_weights, set_peft_model_state_dict

    def load_adapter(directory: str, *args: Any, **kwargs: Any) -> Any:
        return set_peft_model_state_dict(model, load_peft_weights(directory))

    model.load_adapter = load_adapter
