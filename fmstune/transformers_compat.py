"""What is private to transformers, PEFT and datasets, and is used all the same: each with the public way that
was not enough.

The rest of fmstune calls these functions. `tests/training/test_trl_compat.py` checks each name against the
installed packages, so that an upgrade fails there and says what moved. What is private to the trainers is in
`fmstune.training.trl_compat`. The libraries are imported where they are used: `config` reads their source
without importing them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmstune.errors import ConfigError

_REMEDY = "install versions that fmstune supports with `pip install --upgrade fmstune`"


# Source that is read, since importing it takes seconds: `dataclasses.fields` of the real class would be the
# public way. tests/config compares what is read with the real classes.

TRAINING_ARGUMENTS = ("transformers", "training_args.py", "TrainingArguments")
TRL_BASE_CONFIG = ("trl", "trainer/base_config.py", "_BaseConfig")
"""The classes that the configuration class of each method is made of: package, file, class."""
ENUM_FILES = ("trainer_utils.py", "training_args.py")
"""Files of transformers with the `ExplicitEnum`s that annotations name."""
SCHEDULES_FILE, SCHEDULES_TABLE = "optimization.py", "TYPE_TO_SCHEDULER_FUNCTION"
"""Where transformers says which function each schedule is; `get_scheduler` takes a name and an optimizer."""
FSDP_OPTION = "FSDPOption"
"""The class of transformers whose values are the words of `training.fsdp`."""


def library_source(package: str, file: str) -> str:
    """The source of a file of an installed package, which is not imported. Raises `ConfigError`."""
    # `find_spec` of a package at the top imports nothing; of one below, it would import its parents.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"the package {package} is not installed: {_REMEDY}.")
    try:
        return (Path(spec.origin).parent / file).read_text(encoding="utf-8")
    except OSError:
        raise ConfigError(f"the installed {package} has no {file}: {_REMEDY}.") from None


def class_source(package: str, file: str, name: str) -> tuple[str, str]:
    """The source of a class up to its first method, and that of its whole file: of 3,000 lines these are
    1,000. Raises `ConfigError`."""
    source = library_source(package, file)
    match = re.search(rf"^class {name}\b.*?(?=^    (?:async )?def |^    @|^class |\Z)", source, re.M | re.S)
    if match is None:
        raise ConfigError(f"the installed {package} has no {name}: {_REMEDY}.")
    return match.group(), source


# Chat templates.


def render_chats(conversations: Sequence[Any], template: str, **kwargs: Any) -> tuple[list[str], list[Any]]:
    """What a template writes of conversations, and the spans that it marks with `{% generation %}`.

    `tokenizer.apply_chat_template` gives a mask of tokens where these are characters, and takes a template
    that is no tokenizer's only together with one.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, spans = render_jinja_template(conversations=conversations, chat_template=template, **kwargs)
    return texts, spans


def template_environment(template: str) -> Any:
    """The jinja environment that chat templates run in: `apply_chat_template` gives texts alone, and not
    where each message ends in them."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template).environment


# Configurations and models.

OWN_KEYS = ("_name_or_path", "transformers_version")
"""Keys of `PretrainedConfig.to_dict()` of where it was loaded from and by what, not of which model it is."""


def hub_commit(config: Any) -> str | None:
    """The commit of the hub that a configuration was loaded from; no public attribute says it."""
    found: str | None = getattr(config, "_commit_hash", None)
    return found


def attention_of(config: Any) -> str:
    """The attention that a model of this configuration uses. `config.attn_implementation` can be set and is
    not there to be read."""
    return str(getattr(config, "_attn_implementation", "sdpa"))


def can_set_attention(model: Any) -> bool:
    """Whether `set_attn_implementation` changes what a model does: on some it raises, on others it is without
    effect."""
    return bool(model._can_set_attn_implementation())


def sdpa() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """transformers' attention by torch's kernel, and the mask for it. `AttentionInterface` and
    `AttentionMaskInterface` take a custom attention; these let one continue from the usual one."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    return sdpa_attention_forward, sdpa_mask


def kept_in_float32(model: Any) -> list[str]:
    """Parts of the names of weights that the model's class wants in float32 whatever is loaded or saved;
    `from_pretrained` obeys them, and nothing reports them."""
    return [
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    ]


@functools.cache
def linear_like() -> type[Any]:
    """The class of GPT-2's linear layers, whose weights are transposed. PEFT's `all-linear` knows it too."""
    from transformers.pytorch_utils import Conv1D

    found: type[Any] = Conv1D
    return found


def forget_quantization(model: Any) -> None:
    """Let a model from a GGUF file, whose weights are plain ones now, be trained and saved like any other:
    transformers keeps calling it quantised, and would refuse both. `model.dequantize()` is for weights that
    still are."""
    model.hf_quantizer = None
    for owner in (model.config, model.config.get_text_config()):
        if getattr(owner, "quantization_config", None) is not None:
            del owner.quantization_config
    if "quantization_method" in vars(model):
        del model.quantization_method


@contextmanager
def no_gguf_bar() -> Iterator[None]:
    """Without the bar of the unpacking of a GGUF file, which is drawn also where no setting of transformers
    (`disable_progress_bar`, `TQDM_DISABLE`) wants one."""
    from transformers import modeling_gguf_pytorch_utils

    drawn = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = functools.partial(drawn, disable=True)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = drawn


# PEFT.

MISSING_ADAPTER_KEYS = "missing adapter keys"
"""What PEFT warns of with weights that it did not find: `PeftModel.from_pretrained` does not return them."""


def refused_on_mamba(model: Any, name: str) -> bool:
    """Whether PEFT refuses LoRA on a module with this name, as on the projections of Mamba that kernels read
    past an adapter. Its public way is to fail at the whole adapter."""
    from peft import LoraConfig
    from peft.tuners import tuners_utils

    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    try:
        if check is not None:  # where PEFT has it under another name, it says itself what it refuses
            check(LoraConfig(), model, name)
    except ValueError:
        return True
    return False


def save_without_question(model: Any, *, embeddings: bool) -> None:
    """Let a `PeftModel` be saved without a question to the hub: by default PEFT asks at each checkpoint
    whether the base model's vocabulary was of another size, unless the base has a config.json here. The
    Trainer calls `save_pretrained`, and has no argument for what it is given."""
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=embeddings)


def resume_virtual_tokens(model: Any) -> None:
    """Let the virtual tokens of a `PeftModel` be resumed: PEFT's `load_adapter`, which the Trainer calls,
    loads them for use only."""
    from peft import load_peft_weights, set_peft_model_state_dict

    def load_adapter(directory: str, *args: Any, **kwargs: Any) -> Any:
        return set_peft_model_state_dict(model, load_peft_weights(directory))

    model.load_adapter = load_adapter


# huggingface_hub.


def use_caches_alone() -> None:
    """Let the libraries not ask the hub. `HF_HUB_OFFLINE` is the public way, which what is imported already
    has read."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


# datasets.


def table_in_memory(table: Any) -> Any:
    """An Arrow table as `datasets.Dataset` takes it, with a fingerprint of ours. `Dataset.from_dict` and its
    like copy the rows, and hash all of them."""
    import datasets

    return datasets.table.InMemoryTable(table)


def accelerators_kept() -> Callable[[], None]:
    """What puts back the settings that all `Accelerator`s of a process share: a Trainer
    resets them for its own, and accelerate has no public way to have two."""
    before = {name: dict(found) for name, found in _shared_by_accelerators()}

    def put_back() -> None:
        for name, found in _shared_by_accelerators():
            found.clear()
            found.update(before.get(name, {}))

    return put_back


def _shared_by_accelerators() -> Iterator[tuple[str, dict[str, Any]]]:
    state = sys.modules.get("accelerate.state")
    for name in ("AcceleratorState", "GradientState") if state is not None else ():
        yield name, getattr(state, name)._shared_state


# Callbacks of integrations.


def experiment_of(callback: Any) -> Any:
    """The experiment of `CometCallback`, which is nowhere public; `None` of others."""
    return getattr(callback, "_experiment", None)
