"""The private parts of transformers, PEFT and datasets that fmstune uses, each with the reason why the public
API is not enough.

The rest of fmstune calls these functions. `tests/training/test_trl_compat.py` checks each name against the
installed packages, so that an upgrade fails there and shows what moved. Private parts of the trainers are in
`fmstune.training.trl_compat`. The libraries are imported inside the functions: `config` reads their source
without importing them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.errors import ConfigError

_REMEDY = "install versions that fmstune supports with `pip install --upgrade fmstune`"


# Read from source, since importing takes seconds: `dataclasses.fields` of the real class would be the public
# way. tests/config compares the result with the real classes.

TRAINING_ARGUMENTS = ("transformers", "training_args.py", "TrainingArguments")
TRL_BASE_CONFIG = ("trl", "trainer/base_config.py", "_BaseConfig")
"""The base classes of each method's configuration class: package, file, class."""
ENUM_FILES = ("trainer_utils.py", "training_args.py")
"""Files of transformers that define the `ExplicitEnum`s used in annotations."""
SCHEDULES_FILE, SCHEDULES_TABLE = "optimization.py", "TYPE_TO_SCHEDULER_FUNCTION"
"""Where transformers maps schedules to functions; `get_scheduler` takes a name and an optimizer."""
FSDP_OPTION = "FSDPOption"
"""The class of transformers whose values are the options of `training.fsdp`."""


def library_source(package: str, file: str) -> str:
    """The source of a file of an installed package, without importing it. Raises `ConfigError`."""
    # `find_spec` of a top-level package imports nothing; for a subpackage it would import the parents.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"the package {package} is not installed: {_REMEDY}.")
    try:
        return (Path(spec.origin).parent / file).read_text(encoding="utf-8")
    except OSError:
        raise ConfigError(f"the installed {package} has no {file}: {_REMEDY}.") from None


def class_source(package: str, file: str, name: str) -> tuple[str, str]:
    """The source of a class up to its first method (1,000 of 3,000 lines), and that of its whole file. Raises
    `ConfigError`."""
    source = library_source(package, file)
    match = re.search(rf"^class {name}\b.*?(?=^    (?:async )?def |^    @|^class |\Z)", source, re.M | re.S)
    if match is None:
        raise ConfigError(f"the installed {package} has no {name}: {_REMEDY}.")
    return match.group(), source


# Chat templates.


def render_chats(conversations: Sequence[Any], template: str, **kwargs: Any) -> tuple[list[str], list[Any]]:
    """Render conversations with a template; return the texts and the spans marked with `{% generation %}`.

    The spans are in characters. `tokenizer.apply_chat_template` returns a mask of tokens instead, and needs a
    tokenizer.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, spans = render_jinja_template(conversations=conversations, chat_template=template, **kwargs)
    return texts, spans


def template_environment(template: str) -> Any:
    """The jinja environment of chat templates: `apply_chat_template` returns only the text, not where each
    message ends in it."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template).environment


# Configurations and models.

OWN_KEYS = ("_name_or_path", "transformers_version")
"""Keys of `PretrainedConfig.to_dict()` that describe how it was loaded rather than which model it is."""


def hub_commit(config: Any) -> str | None:
    """The hub commit that a configuration was loaded from; no public attribute has it."""
    found: str | None = getattr(config, "_commit_hash", None)
    return found


def attention_of(config: Any) -> str:
    """The attention implementation of a model with this configuration. `config.attn_implementation` is
    write-only."""
    return str(getattr(config, "_attn_implementation", "sdpa"))


def can_set_attention(model: Any) -> bool:
    """Whether `set_attn_implementation` works on a model: on some it raises, on others it has no effect."""
    return bool(model._can_set_attn_implementation())


def sdpa() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """transformers' attention with torch's kernel, and its mask function. `AttentionInterface` and
    `AttentionMaskInterface` register a custom attention; these let it fall back to the usual one."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    return sdpa_attention_forward, sdpa_mask


def kept_in_float32(model: Any) -> list[str]:
    """Name fragments of the weights that the model's class keeps in float32 at any dtype; `from_pretrained`
    honours them, but no public attribute lists them."""
    return [
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    ]


def tied_weights(model: Any) -> int:
    """How many weights the configuration's flag `tie_word_embeddings` ties in a model of this class."""
    return len(getattr(model, "_tied_weights_keys", None) or ())


@functools.cache
def linear_like() -> type[Any]:
    """The class of GPT-2's linear layers, whose weights are transposed. PEFT's `all-linear` includes it."""
    from transformers.pytorch_utils import Conv1D

    found: type[Any] = Conv1D
    return found


def forget_quantization(model: Any) -> None:
    """Let a model with unpacked weights, as from a GGUF file, be trained and saved like any other. They are
    no longer quantized, but transformers still marks the model as such: it would refuse both, or quantize
    the weights again on saving. `model.dequantize()` is for weights that still are."""
    model.hf_quantizer = None
    model._weight_conversions = None  # then those of the architecture apply
    for owner in (model.config, model.config.get_text_config()):
        if getattr(owner, "quantization_config", None) is not None:
            del owner.quantization_config
    if "quantization_method" in vars(model):
        del model.quantization_method


@contextmanager
def no_gguf_bar() -> Iterator[None]:
    """Hide the progress bar of unpacking a GGUF file, which ignores transformers' settings
    (`disable_progress_bar`, `TQDM_DISABLE`)."""
    from transformers import modeling_gguf_pytorch_utils

    drawn = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = functools.partial(drawn, disable=True)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = drawn


def gguf_metadata(file: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The metadata of a GGUF file, of lists of strings only their lengths, and the names of its tensors:
    in milliseconds, for which the package gguf takes seconds."""
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, tensors = read_gguf_metadata(file)
    return metadata, tuple(tensors)


def gguf_settings_read(architecture: str) -> set[str] | None:
    """The metadata of a GGUF file that transformers puts into its configuration; `None` if it has a reader
    for files of this architecture, which reads all of them."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

    if architecture in GGUF_CONFIG_ARCHS:
        return None
    known = {re.sub(r"[-_]", "", name): keys for name, keys in GGUF_CONFIG_MAPPING.items()}
    found = known.get(re.sub(r"[-_]", "", architecture), {})
    return {key for key, name in found.items() if name is not None}


def gguf_splits() -> set[str]:
    """The rules by which transformers can split the texts of a GGUF file's tokenizer."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return set(GGUF_PRE_TOKENIZER_SPLITS)


def gguf_names(model: Any, architecture: str) -> set[str] | None:
    """The names that a model's weights have in a GGUF file; `None` where transformers reports the others
    itself."""
    from transformers import modeling_gguf_pytorch_utils as of_gguf
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

    if architecture in GGUF_CONFIG_ARCHS:
        return None
    kind = of_gguf.TENSOR_PROCESSORS.get(architecture, of_gguf.TensorProcessor)
    return set(of_gguf.get_gguf_hf_weights_map(model, kind(config=model.config.to_dict())))


# huggingface_hub.


def use_only_caches() -> None:
    """Keep the libraries from contacting the hub. `HF_HUB_OFFLINE` is the public way, but imported libraries
    have read it already."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


# datasets.


def table_in_memory(table: Any) -> Any:
    """Wrap an Arrow table for `datasets.Dataset`, which takes it with our own fingerprint.
    `Dataset.from_dict` and the like copy and hash all rows."""
    import datasets

    return datasets.table.InMemoryTable(table)


def streamed(rows: Any, features: Any) -> Any:
    """What the calls of `rows` generate, as an `IterableDataset`. Its `from_generator` hashes the generator
    with its readers and its tokenizer, for a cache that a stream does not have: up to a second."""
    from datasets import DatasetInfo, IterableDataset
    from datasets.iterable_dataset import ExamplesIterable

    return IterableDataset(ExamplesIterable(_Numbered(rows), {}), info=DatasetInfo(features=features))


@dataclass(frozen=True)
class _Numbered:
    """Rows as a data set takes them; to be pickled for the workers of a data loader."""

    rows: Callable[[], Iterable[Any]]

    def __call__(self) -> Iterator[tuple[int, Any]]:
        yield from enumerate(self.rows())


def accelerators_kept() -> Callable[[], None]:
    """Return a function that restores the state shared by all `Accelerator`s of the process: a Trainer resets
    it for its own, and accelerate has no public way to have two."""
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
    """The experiment of a `CometCallback`, which no public attribute has; `None` for other callbacks."""
    return getattr(callback, "_experiment", None)
