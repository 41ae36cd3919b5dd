"""Load an adapter onto its base model, with every weight of its file."""

from __future__ import annotations

import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft import __version__ as peft_version
from transformers import PreTrainedModel

from fmstune.config.paths.models import AdapterFile
from fmstune.errors import ConfigError, ModelError
from fmstune.models.vocabulary import fit_adapter, saved_embeddings
from fmstune.peft_compat import MISSING_ADAPTER_KEYS, embeddings_known, unused_adapter_weights
from fmstune.text import counted, first_line

_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def load_adapter(model: PreTrainedModel, adapter: AdapterFile, *, trainable: bool) -> PeftModel:
    """The adapter's model: `model` with the adapter on it. Raises `ModelError`."""
    directory = str(adapter.directory)
    try:
        settings = PeftConfig.from_pretrained(directory)
        settings.inference_mode = not trainable
        settings.base_model_name_or_path = (
            model.name_or_path
        )  # where it was found: a copy of it may be elsewhere
        if not any((adapter.directory / name).is_file() for name in _FILES):  # PEFT would ask the hub
            raise ModelError(f"it has no weights: there is no {_FILES[0]} in it.")
        fit_adapter(model, adapter.directory)
        if settings.is_prompt_learning and trainable:
            return _learnt_prompt(model, directory, settings)
        with warnings.catch_warnings(record=True) as said, _tied_as_saved(model, adapter):
            warnings.simplefilter("always")
            made = PeftModel.from_pretrained(model, directory, is_trainable=trainable, config=settings)
    except Exception as error:  # from PEFT, safetensors and torch, including bare `Exception`s
        first = first_line(error)
        if "size mismatch" in str(error):
            first = f"it does not fit {adapter.base}: its weights are of other sizes."
        raise ModelError(f"the adapter in {directory!r} cannot be loaded: {first}") from error
    lost = next((str(each.message) for each in said if MISSING_ADAPTER_KEYS in str(each.message)), None)
    if lost is not None:  # for some architectures (Laguna) PEFT renames weights and then does not find them
        keys = re.findall(r"'([^']+)'", lost)
        raise ModelError(
            f"the adapter in {directory!r} cannot be loaded: PEFT {peft_version} finds no weights for "
            f"{counted(len(keys), 'tensor')} of it, {keys[0] if keys else 'unnamed'} for one."
        )
    if not settings.is_prompt_learning:
        _require_all_used(made, adapter)
    return made


def _tied_as_saved(model: PreTrainedModel, adapter: AdapterFile) -> AbstractContextManager[None]:
    """Let the head share the weights of the embeddings that an adapter trains whole, if it did: then the file
    has both."""
    ends = {model.get_input_embeddings(), model.get_output_embeddings()} - {None}
    both = saved_embeddings(model, adapter.directory).keys() == ends
    return embeddings_known(model) if both else nullcontext()


def require_reloadable(model: Any) -> None:
    """Raise `ConfigError` if PEFT does not find all weights of the model's LoRA adapter again when it loads
    them: a resumed run would go on with new ones, and the tuned adapter could not be used."""
    if not isinstance(model, PeftModel) or model.active_peft_config.is_prompt_learning:
        return
    # By default it asks the hub for the base model.
    written = get_peft_model_state_dict(model, save_embedding_layers=False)
    try:
        unexpected = set_peft_model_state_dict(model, written).unexpected_keys
    except KeyError as error:
        raise ConfigError(
            f"PEFT {peft_version} would not load {error} of this adapter again, as a module of "
            "lora.modules_to_save contains it: leave that out, or adapt others ([lora])."
        ) from error
    # It also names copies of whole embeddings, which it has loaded under another name.
    if strange := [name for name in unexpected if ".lora_" in name]:
        lost = sorted({re.sub(r"\.lora_.*", "", name).rpartition(".")[2] for name in strange})
        raise ConfigError(
            f"PEFT {peft_version} would not load {counted(len(strange), 'tensor')} of this adapter again, "
            f"{strange[0]} for one, as it renames them for a model of type {model.config.model_type}: set "
            f"lora.target_modules to modules without {', '.join(lost)}, such as "
            'lora.target_modules = ["q_proj", "v_proj"].'
        )


def _require_all_used(model: PeftModel, adapter: AdapterFile) -> None:
    """Raise `ModelError` if the file has weights that are nowhere in the model: PEFT drops them in silence,
    and what remains of the adapter is not what was trained."""
    unused = unused_adapter_weights(model, str(adapter.directory))
    if unused:
        raise ModelError(
            f"the adapter in {str(adapter.directory)!r} does not fit {model.name_or_path}: "
            f"{counted(len(unused), 'tensor')} of it would not be used, {unused[0]} for one. Its "
            "adapter_config.json or its base model is not that of its weights."
        )


def _learnt_prompt(model: PreTrainedModel, directory: str, settings: PeftConfig) -> PeftModel:
    """PEFT loads virtual tokens for inference only: rebuild them with the learnt weights."""
    begun = settings.prompt_tuning_init
    settings.prompt_tuning_init = "RANDOM"  # it would search the tokenizer at its original path
    made = get_peft_model(model, settings)
    settings.prompt_tuning_init = begun
    set_peft_model_state_dict(made, load_peft_weights(directory))
    return made
