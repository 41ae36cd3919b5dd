"""Loading the model and its tokenizer, and saying which model it is."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateSyntaxError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.chat_template_utils import render_jinja_template

from fmstune import demo
from fmstune.config.schema import ModelConfig
from fmstune.tuning.chat_templates import NAMED, named_template
from fmstune.tuning.errors import ModelError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be tuned. `identity` says which one it is, as params for the trackers."""

    model: PreTrainedModel
    identity: Mapping[str, Any]


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, with the configured chat template if there is one.

    Raises `ModelError` with the cause in one sentence.
    """
    _require_place(config.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(_path(config), **_common(config))
    except Exception as error:  # each library below has errors of its own, bare `Exception`s among them
        raise ModelError(_why_not(config.path, "tokenizer", error)) from error
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template, tokenizer)
    return tokenizer


def load_model(config: ModelConfig, *, lora: bool, seed: int, reward: bool = False) -> LoadedModel:
    """Load the causal model of a local directory or hub name, or the demo model drawn from `seed`.

    With `reward` its head is one that gives each text one number, drawn from `seed` unless it is saved.
    Raises `ModelError` with the cause in one sentence.
    """
    _require_place(config.path)
    path, common = _path(config), _common(config)
    missing: Collection[str] = ()
    try:
        settings = AutoConfig.from_pretrained(path, **common)
        if reward:
            _one_label(settings, config.path)
        if config.path == "demo":
            model = demo.build_model(seed, reward=reward)
        else:
            kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
            with _drawn_from(seed) if reward else contextlib.nullcontext():
                model, report = kind.from_pretrained(
                    path,
                    config=settings,
                    dtype=_dtype(config.dtype, settings, lora=lora),
                    attn_implementation=config.attn_implementation,
                    output_loading_info=True,
                    **common,
                )
            missing = report["missing_keys"]  # the library draws these at random
            if reward:  # a head is what is to be learnt
                missing = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
    except ModelError:
        raise
    except Exception as error:  # each library below has errors of its own, bare `Exception`s among them
        raise ModelError(_why_not(config.path, "model", error)) from error
    if missing:
        raise ModelError(
            f"the weights of {config.path!r} are not complete: {len(missing)} tensors that its config.json "
            f"asks for are not among them, {min(missing)} for one."
        )
    identity = {
        "path": config.path,
        "type": settings.model_type,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "config_sha256": _config_hash(settings.to_dict()),
    }
    if commit := getattr(settings, "_commit_hash", None):
        identity["hub_commit"] = commit
    return LoadedModel(model, identity)


def _one_label(settings: Any, path: str) -> None:
    """Let the model have one output; raises `ModelError` when it is a classifier with several."""
    classifies = any("Classification" in name for name in settings.architectures or ())
    if classifies and settings.num_labels != 1:
        raise ModelError(
            f"model.path = {path!r} holds a classifier with {settings.num_labels} labels; a reward model has "
            "one. Give a language model, or a reward model to go on with."
        )
    settings.num_labels = 1


@contextlib.contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _path(config: ModelConfig) -> str:
    return str(demo.model_dir()) if config.path == "demo" else config.path


def _common(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def _dtype(asked: str, settings: Any, *, lora: bool) -> torch.dtype:
    """What the weights are held in. Weights that are trained need float32: a bfloat16 weight does not
    feel an update smaller than 1/256 of itself. The frozen weights under an adapter, on an accelerator,
    stay as they were saved."""
    if asked != "auto":
        return _DTYPES[asked]
    saved = getattr(settings, "dtype", None)
    if lora and torch.cuda.is_available() and isinstance(saved, torch.dtype):
        return saved
    return torch.float32


def _require_place(path: str) -> None:
    """A place on the disk that holds no model is told at once, not after asking the hub for it."""
    if path == "demo":
        return
    if Path(path).is_dir():
        if (Path(path) / "config.json").exists():
            return
        if (Path(path) / "adapter_config.json").exists():
            raise ModelError(
                f"model.path = {path!r} holds an adapter, not a model: give the model it was made for."
            )
        raise ModelError(f"model.path = {path!r} holds no model: there is no config.json in it.")
    if Path(path).exists():
        raise ModelError(f"model.path = {path!r} is a file; give the directory that holds the model.")
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(f"model.path = {path!r}: there is no such directory (looked for from {Path.cwd()}).")


def _why_not(path: str, what: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(path).is_dir():
        if what == "tokenizer" and not any(Path(path).glob("tokenizer*")):
            return f"model.path = {path!r} holds a model without a tokenizer: there is no tokenizer.json."
        if "ignore_mismatched_sizes" in first:
            return f"the weights in {path!r} do not fit its config.json: they are of other sizes."
        return f"the {what} in {path!r} cannot be loaded: {first}"
    return (
        f"the model {path!r} is neither a directory here nor could it be fetched from the hub: {first} "
        "Check the name (owner/name) and the network, or give a local directory."
    )


def _read_template(path: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of a file, or the one of that name where there is no such file."""
    if path in NAMED and not Path(path).is_file():
        return named_template(path, tokenizer)
    try:
        template = Path(path).read_text(encoding="utf-8")
        # With the library's own environment, which knows more than Jinja's: `{% generation %}`, say.
        render_jinja_template(conversations=[], chat_template=template)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"model.chat_template = {path!r} cannot be read: {error}.") from error
    except TemplateSyntaxError as error:
        raise ModelError(
            f"model.chat_template = {path!r} is not a Jinja template: line {error.lineno}: {error.message}"
        ) from error
    return template


def _config_hash(settings: Mapping[str, Any]) -> str:
    # Where it was loaded from, and by which version of the library, is not which model it is.
    kept = {
        key: value for key, value in settings.items() if key not in ("_name_or_path", "transformers_version")
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
