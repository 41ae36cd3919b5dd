"""Load the model and its tokenizer, and identify the model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from fmstune import demo
from fmstune.config.paths.models import AdapterFile, holds_adapter, read_adapter, split_gguf
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError, ModelError
from fmstune.models import gguf, quantization
from fmstune.models.adapter_weights import load_adapter
from fmstune.models.adapters import base_config, record_base
from fmstune.models.base_weights import changed_base, fingerprint
from fmstune.models.configured_template import set_template
from fmstune.models.end_tokens import keep_as_published
from fmstune.models.load_errors import weights_lacking, why_not_loaded
from fmstune.models.locate import require_local_model
from fmstune.models.saving import OwnFiles, settings_to_keep
from fmstune.models.tokenizer_file import unlike_its_file
from fmstune.models.weights_used import (
    ignored_shards,
    record_untied,
    require_no_integers,
    unread_settings,
    unused_weights,
)
from fmstune.system.collector import imports_done
from fmstune.transformers_compat import OWN_KEYS, forget_quantization, hub_commit, no_gguf_bar

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be tuned. `identity` says which one it is, as params for the trackers.

    `model` is a `PeftModel` when what was loaded is an adapter with its base.
    """

    model: Any
    identity: Mapping[str, Any]
    own_files: OwnFiles = field(default_factory=OwnFiles)
    notes: tuple[str, ...] = ()
    """Messages about its files."""


def load_tokenizer(config: ModelConfig, *, base: str | None = None) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, with the configured chat template if there is one.

    An adapter's is next to it, or that of its base model, which `base` overrides.
    Raises `ModelError` with the cause in one sentence.
    """
    imports_done()  # this takes long; the tokenizer is the first thing that is loaded
    config = _with_gguf_file(config)
    adapter = adapter_at(config)
    if adapter is not None and not any(adapter.directory.glob("tokenizer*")):
        config = replace(base_config(adapter, config, base), chat_template=config.chat_template)
    elif adapter is None:
        require_local_model(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(_location(config), **_common_arguments(config))
    except Exception as error:  # each library below has its own errors, including bare `Exception`s
        raise ModelError(why_not_loaded(config, "tokenizer", error)) from error
    set_template(config, tokenizer)
    return tokenizer


def load_model(
    config: ModelConfig,
    *,
    lora: bool,
    seed: int,
    reward: bool = False,
    base: str | None = None,
    trainable: bool = True,
) -> LoadedModel:
    """Load the causal model of a local directory, GGUF file or hub name, or the demo model drawn from `seed`.

    `lora` says that its weights stay frozen. With `reward` its head is one that gives each text one number,
    drawn from `seed` unless it is saved. A directory with an adapter is loaded onto its base model, which
    `base` can say in place of the adapter; `trainable` is whether the adapter's weights are to be trained.
    Raises `ModelError` with the cause in one sentence.
    """
    config = _with_gguf_file(config)
    adapter = adapter_at(config)
    if adapter is not None:
        lower = _base_of(adapter, config, base, reward=reward)
        below = load_model(lower, lora=True, seed=seed, reward=reward)
        made = load_adapter(below.model, adapter, trainable=trainable)
        return _on_base(made, below, adapter, config)
    require_local_model(config)
    path, common = _location(config), _common_arguments(config)
    drawn_from = seed if config.path == "demo" else demo.seed_of(config.path)
    missing: Collection[str] = ()
    said: list[str | None] = [ignored_shards(config)]
    own = OwnFiles()
    place = str(Path(config.path, config.gguf_file)) if config.gguf_file else config.path
    try:
        settings = AutoConfig.from_pretrained(path, **common)
        file = None
        if config.gguf_file is not None:
            file = gguf.read_gguf(path, config.gguf_file, config.revision)
            said.append(unread_settings(gguf.complete(settings, file), place))
        packed = getattr(settings, "quantization_config", None)
        if packed is None:
            require_no_integers(config)
        classifies = any("Classification" in name for name in settings.architectures or ())
        own = _own_files(settings, config, lora=lora)
        if reward:
            _require_single_output(settings, config.path, classifies=classifies)
        if drawn_from is not None:
            model = demo.build_model(drawn_from, reward=reward, attention=config.attn_implementation)
        else:
            kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
            with _torch_seeded(seed) if reward else contextlib.nullcontext(), no_gguf_bar():
                model, report = kind.from_pretrained(
                    path,
                    config=settings,
                    dtype=_dtype(config.dtype, settings, lora=lora),
                    attn_implementation=config.attn_implementation,
                    output_loading_info=True,
                    **common,
                    **_quantization_arguments(config),
                )
            missing = report["missing_keys"]  # the library initialises these randomly
            unexpected = report["unexpected_keys"]
            if reward and not classifies:  # another head is to be learnt
                missing, unexpected = (
                    [key for key in keys if key.startswith(f"{model.base_model_prefix}.")]
                    for keys in (missing, unexpected)
                )
            if file is not None:
                unexpected = {*unexpected, *gguf.unplaced(model, file)}
            said.append(unused_weights(unexpected, place))
            if packed is not None and config.quantization is None and config.gguf_file is None:
                said.append(quantization.unpacked(model, packed, config.path))
            record_untied(model)
            keep_as_published(model)
    except ModelError:
        raise
    except Exception as error:  # each library below has its own errors, including bare `Exception`s
        raise ModelError(why_not_loaded(config, "model", error)) from error
    if missing:
        raise ModelError(weights_lacking(place, missing, settings.architectures, type(model).__name__))
    if config.gguf_file is not None:
        forget_quantization(model)
    if config.quantization is not None:
        model = quantization.prepare(model)
    record_base(model, config, seed)
    identity = {
        "path": place,
        "type": settings.model_type,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "config_sha256": _config_hash(settings.to_dict()),
    }
    if config.quantization is not None:
        identity["quantization"] = config.quantization
    if commit := hub_commit(settings):
        identity["hub_commit"] = commit
    return LoadedModel(model, identity, own, tuple(note for note in said if note))


def _base_of(adapter: AdapterFile, config: ModelConfig, base: str | None, *, reward: bool) -> ModelConfig:
    """The configuration of an adapter's base model. Raises `ModelError`."""
    if adapter.is_reward_model != reward:
        raise ModelError(
            f"the adapter in {config.path!r} is of a "
            + (
                "reward model: use it with run.method = 'reward'."
                if adapter.is_reward_model
                else "language model, not of a reward model: merge it first "
                f"(fmstune merge {config.path} OUT), and train the result."
            )
        )
    lower = base_config(adapter, config, base)
    if holds_adapter(Path(lower.path)):
        raise ModelError(
            f"the adapter in {config.path!r} is for {lower.path!r}, which is an adapter itself; "
            f"merge that one first, and use the result as base model: fmstune merge {lower.path} OUT."
        )
    return lower


def _on_base(made: Any, below: LoadedModel, adapter: AdapterFile, config: ModelConfig) -> LoadedModel:
    """A base model with an adapter, which may be for other weights than it has."""
    base, weights = str(below.identity["path"]), below.own_files.weights
    changed = changed_base(adapter.directory, base, weights)
    notes = (*below.notes, changed) if changed else below.notes
    identity = {**below.identity, "path": config.path, "base": base}
    return LoadedModel(made, identity, OwnFiles(weights=weights), notes)


def _own_files(settings: Any, config: ModelConfig, *, lora: bool) -> OwnFiles:
    """What the model's files say; not the type of weights that the user wants in another one, or that are of
    no type for training."""
    saved = getattr(settings, "dtype", None)
    known = config.dtype == "auto" and config.gguf_file is None and saved in _DTYPES.values()
    place = Path(config.path, config.gguf_file or "")
    weights = fingerprint(place) if lora and place.exists() and not demo.is_demo(config.path) else None
    return OwnFiles(saved if known else None, settings_to_keep(settings), weights)


def _require_single_output(settings: Any, path: str, *, classifies: bool) -> None:
    """Configure a single output; raise `ModelError` for a classifier with several."""
    if classifies and settings.num_labels != 1:
        raise ModelError(
            f"model.path = {path!r} is a classifier with {settings.num_labels} labels; a reward model has "
            "one. Use a language model, or a reward model to continue from."
        )
    settings.num_labels = 1


@contextlib.contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def load_for_use(
    config: ModelConfig, *, base: str | None = None
) -> tuple[LoadedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer for generation, on the GPU if there is one. Raises `ModelError`."""
    tokenizer = load_tokenizer(config, base=base)
    loaded = load_model(config, lora=True, seed=0, base=base, trainable=False)
    if split := unlike_its_file(tokenizer, config.path):
        loaded = replace(loaded, notes=(*loaded.notes, split))
    if torch.accelerator.is_available():
        loaded = replace(loaded, model=loaded.model.to(torch.accelerator.current_accelerator()))
    loaded.model.eval()
    return loaded, tokenizer


def adapter_at(config: ModelConfig) -> AdapterFile | None:
    """The adapter at `model.path`, if there is one. Raises `ModelError`."""
    if not holds_adapter(Path(config.path)):
        return None
    try:
        return read_adapter(Path(config.path))
    except ConfigError as error:
        raise ModelError(str(error)) from error


def _with_gguf_file(config: ModelConfig) -> ModelConfig:
    """Split a path to a GGUF file into directory and file."""
    path, gguf_file = split_gguf(config.path, config.gguf_file)
    return replace(config, path=path, gguf_file=gguf_file)


def _quantization_arguments(config: ModelConfig) -> dict[str, Any]:
    if config.gguf_file is not None:
        return gguf.dequantized()
    return quantization.quantized(config.quantization) if config.quantization is not None else {}


def _location(config: ModelConfig) -> str:
    return str(demo.model_dir()) if demo.is_demo(config.path) else config.path


def _common_arguments(config: ModelConfig) -> dict[str, Any]:
    common = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    return common if config.gguf_file is None else {**common, "gguf_file": config.gguf_file}


def _dtype(asked: str, settings: Any, *, lora: bool) -> torch.dtype:
    """What the weights are held in; `saved`: as they are on disk.

    Weights that are trained need float32: a bfloat16 weight does not
    feel an update smaller than 1/256 of itself. The frozen weights under an adapter, on an accelerator,
    stay as they were saved."""
    if asked in _DTYPES:
        return _DTYPES[asked]
    saved = getattr(settings, "dtype", None)
    keeps = asked == "saved" or (lora and torch.cuda.is_available())
    if keeps and isinstance(saved, torch.dtype):
        return saved
    return torch.float32


def _config_hash(settings: Mapping[str, Any]) -> str:
    # The path and the library's version do not identify the model.
    kept = {key: value for key, value in settings.items() if key not in OWN_KEYS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
