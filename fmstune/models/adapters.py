"""Adapters: which one a run trains, its base model, and its description."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import (
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
)
from transformers import PreTrainedModel

from fmstune import demo
from fmstune.config.check.suggest import hint
from fmstune.config.methods.known import METHODS
from fmstune.config.paths.models import AdapterFile, split_gguf
from fmstune.config.schema.tables import ModelConfig, RunConfig
from fmstune.errors import ConfigError, ModelError
from fmstune.models.adapted_modules import (
    ADAPTABLE,
    CONV1D,
    about_experts,
    adapted_parameters,
    fitting_parameters,
    trained_whole,
)
from fmstune.models.base_weights import fingerprint, recorded
from fmstune.peft_compat import (
    names_of_experts,
    refused_on_mamba,
    resume_virtual_tokens,
    save_without_question,
)
from fmstune.text import counted, shown

_ALL_LINEAR = "all-linear"
_EMBEDDINGS = {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"}


def peft_config(config: RunConfig, model: PreTrainedModel | PeftModel) -> PeftConfig | None:
    """The adapter to add to the loaded model; `None` to train all weights or an existing adapter.

    Raises `ConfigError` for modules that the model does not have.
    """
    if config.adapter is None or isinstance(model, PeftModel):
        return None
    if config.prompt_tuning.enabled:
        return _prompt_tuning(config, model)
    lora, where = config.lora, config.at("lora.target_modules")
    parameters = {}
    if lora.target_parameters:
        setting = f"{config.at('lora.target_parameters')}lora.target_parameters"
        parameters = {"target_parameters": fitting_parameters(lora.target_parameters, model, setting)}
    whole = _whole_modules(config, model)
    tied = {"ensure_weight_tying": True} if _trains_tied(config, model) and _can_keep_tied() else {}
    return PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=_targets(lora.target_modules, model, where, alone=not lora.target_parameters),
        **parameters,
        modules_to_save=whole,
        revision=config.model.revision,
        task_type="SEQ_CLS" if METHODS[config.run.method].scores else "CAUSAL_LM",
        **tied,
    )


def _prompt_tuning(config: RunConfig, model: Any) -> PromptTuningConfig:
    settings = config.prompt_tuning
    text = model.config.get_text_config()
    if all(getattr(text, name, None) is None for name in ("num_attention_heads", "n_head", "num_heads")):
        raise ConfigError(
            f"{config.at('prompt_tuning.enabled')}prompt_tuning.enabled: {text.model_type} has no attention, "
            "and PEFT generates with virtual tokens only if there is some; use --lora."
        )
    # PEFT would take the hidden size, which OPT's embeddings need not have.
    sizes = {"token_dim": model.get_input_embeddings().weight.shape[1]}
    if settings.text is None:
        return PromptTuningConfig(
            num_virtual_tokens=settings.tokens,
            prompt_tuning_init="RANDOM",
            revision=config.model.revision,
            task_type="CAUSAL_LM",
            **sizes,
        )
    place, gguf_file = split_gguf(config.model.path, config.model.gguf_file)
    kwargs = {"revision": config.model.revision, "gguf_file": gguf_file}
    return PromptTuningConfig(
        num_virtual_tokens=settings.tokens,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=settings.text,
        tokenizer_name_or_path=str(demo.model_dir()) if place == "demo" else place,
        tokenizer_kwargs={key: value for key, value in kwargs.items() if value is not None},
        revision=config.model.revision,
        task_type="CAUSAL_LM",
        **sizes,
    )


def base_config(adapter: AdapterFile, config: ModelConfig, base: str | None = None) -> ModelConfig:
    """The model that an adapter was trained for, with the other settings of `config`. `base` is the user's
    setting.

    A relative path is resolved from the working directory, then from the directories above the adapter; of
    several models, it is the one whose weights the adapter was trained on. Raises `ModelError` if it does not
    exist.
    """
    import dataclasses

    named = base or adapter.base
    if not named:
        raise ModelError(
            f"the adapter in {str(adapter.directory)!r} does not say what model it was made for."
        )
    return dataclasses.replace(
        config,
        path=named if base else _found(named, adapter),
        gguf_file=None,
        revision=None if base else adapter.revision,
        chat_template=None,
    )


def _found(named: str, adapter: AdapterFile) -> str:
    if named == "demo" or demo.seed_of(named) is not None:
        return named
    places = [named]
    if not Path(named).is_absolute():
        places += [str(above / named) for above in adapter.directory.resolve().parents]
    places = [place for place in places if Path(place).exists()]
    if places:
        trained_on = recorded(adapter.directory)
        fitting = (place for place in places if trained_on and fingerprint(Path(place)) == trained_on)
        return next(fitting, places[0])
    if named.count("/") == 1 and not named.startswith((".", "/", "~")):
        return named  # a name on the hub
    place, gguf_file = split_gguf(named, None)
    if gguf_file is not None and place.count("/") == 1 and place == "/".join(named.split("/")[:2]):
        return named
    raise ModelError(
        f"the adapter in {str(adapter.directory)!r} was made for the model {named!r}, which no longer "
        "exists; restore it, or set its new path (--base of merge and generate)."
    )


def record_base(model: PreTrainedModel, config: ModelConfig, seed: int) -> None:
    """Record in a model's adapters what they were trained for, so that it can be located: PEFT records
    transformers' name for it, which leaves out the GGUF file and the seed of the demo's weights."""
    named = f"demo:{seed}" if config.path == "demo" else config.path
    if Path(config.path).is_dir() and not config.path.startswith((".", "/", "~")):
        named = f"./{named}"  # `a/b` could be a name on the hub
    model.name_or_path = named if config.gguf_file is None else f"{named.rstrip('/')}/{config.gguf_file}"


def ready_for_checkpoints(model: Any) -> None:
    """Allow an adapter to be saved without a request to the hub, and virtual tokens to be resumed at all.

    PEFT checks whether the base model's vocabulary had another size, which fmstune never changes.
    """
    if not isinstance(model, PeftModel):
        return
    if model.active_peft_config.is_prompt_learning:
        resume_virtual_tokens(model)
    targets = getattr(model.active_peft_config, "target_modules", None) or ()
    embeddings = any(name in _EMBEDDINGS for name in targets)
    save_without_question(model, embeddings=embeddings)


def describe(model: Any) -> str | None:
    """A readable description of what is trained instead of all weights: `LoRA r=16 on q_proj, v_proj`."""
    if not isinstance(model, PeftModel):
        return None
    settings = model.active_peft_config
    if settings.is_prompt_learning:
        text = getattr(settings, "prompt_tuning_init_text", None)
        begun = f", initialised as {shown(text)}" if text else ""
        return f"prompt tuning, {counted(settings.num_virtual_tokens, 'token')} before each text{begun}"
    if not isinstance(settings, PeftLoraConfig):
        return f"an adapter of the kind {settings.peft_type.value}"
    kind = "DoRA" if settings.use_dora else "rsLoRA" if settings.use_rslora else "LoRA"
    names = _last_parts(model.base_model.targeted_module_names)
    # PEFT uses these for the experts of some models, which are a single parameter for all of them.
    names |= adapted_parameters(model)
    whole = _listed(trained_whole(model))
    return f"{kind} r={settings.r} on {_listed(names)}" + (f", and all of {whole}" if whole else "")


def _targets(
    given: str | Sequence[str], model: PreTrainedModel, where: str, *, alone: bool
) -> str | list[str] | None:
    """The modules in PEFT's form; if only they are adapted, `alone`, there must be some. PEFT ignores a name
    that matches nothing as long as another does."""
    if given == _ALL_LINEAR:
        return _all_linear(model)
    setting = f"{where}lora.target_modules"
    modules = [name for name, module in model.named_modules() if isinstance(module, ADAPTABLE)]
    # The trainer multiplies with the head's weights directly, bypassing an adapter on it.
    experts = names_of_experts(model)
    there = f"{_listed(_last_parts(modules) - {'lm_head'} | experts)}, and {_ALL_LINEAR}"
    if isinstance(given, str) and not re.fullmatch(r"\w+(\s*,\s*\w+)*", given):
        fitting = _matched(given, modules, setting)
        if not fitting:
            raise ConfigError(
                f"{setting} = {shown(given)} matches none of the model's full module names, which look "
                f"like {modules[0]}. There are {there}."
            )
        _refuse_head(fitting, model, setting)
        return given
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    if not names and not alone:
        return None
    if not names:
        raise ConfigError(f"{setting} is empty. There are {there}.")
    _refuse_head([path for path in modules if _is_named(path, names)], model, setting)
    for name in set(names) - experts:
        _require_module(name, modules, setting, there, about_experts(name, model))
    return names


def _all_linear(model: PreTrainedModel) -> str | list[str]:
    """All linear layers whose output is the product with their weights.

    Routers of experts and grouped projections are subclasses of `nn.Linear` that return something else, and
    Mamba's kernels read the weights of its `out_proj` directly, bypassing an adapter: PEFT fails on the
    former and refuses the latter.
    """
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, CONV1D)) and not any(module is head for head in heads)
    }
    fitting = [name for name, module in linear.items() if _is_plain(module) and not _on_mamba(model, name)]
    if len(fitting) == len(linear):
        return _ALL_LINEAR
    left_out = linear.keys() - set(fitting)
    if _last_parts(fitting) & _last_parts(left_out):
        return fitting
    return sorted(_last_parts(fitting))


def _is_plain(module: Any) -> bool:
    # PEFT knows the classes of quantization libraries; transformers' own are tried.
    known = type(module).forward in (torch.nn.Linear.forward, CONV1D.forward)
    weight = module.weight
    if known or weight.is_meta or not type(module).__module__.startswith("transformers."):
        return True
    inputs = torch.ones(1, 2, weight.shape[-1], dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            answer = module(inputs)
            return bool(torch.allclose(answer, torch.nn.functional.linear(inputs, weight, module.bias)))
    except Exception:  # it expects other shapes, or does not return a tensor
        return False


def _on_mamba(model: PreTrainedModel, name: str) -> bool:
    return refused_on_mamba(model, name.rpartition(".")[2])


def _matched(pattern: str, modules: Sequence[str], setting: str) -> list[str]:
    try:
        return [name for name in modules if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ConfigError(f"{setting} = {shown(pattern)} is not a regular expression: {error}.") from error


def _refuse_head(paths: Sequence[str], model: PreTrainedModel, setting: str) -> None:
    """Refuse an adapter on the head, or on embeddings that share their weights with it: merged into these, it
    would change the head too."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(head, "weight", None) is getattr(embeddings, "weight", embeddings)
    for path in paths:
        module, name = model.get_submodule(path), path.rpartition(".")[2]
        if module is head or (tied and module is embeddings):
            why = ", which share their weights with the head" if module is not head else ""
            raise ConfigError(
                f"{setting} contains {name}{why}, on which the trainer supports no adapter; put {name} into "
                "lora.modules_to_save to train the weights whole."
            )


def _whole_modules(config: RunConfig, model: PreTrainedModel) -> list[str] | None:
    setting = f"{config.at('lora.modules_to_save')}lora.modules_to_save"
    modules = [name for name, module in model.named_modules() if any(True for _ in module.parameters())]
    own = [name for name in modules if any(True for _ in model.get_submodule(name).parameters(recurse=False))]
    for name in config.lora.modules_to_save:
        _require_module(name, modules, setting, _listed(_last_parts(own)), about_experts(name, model))
    return list(config.lora.modules_to_save) or None


def _require_module(name: str, modules: Sequence[str], setting: str, there: str, about: str) -> None:
    if not any(_is_named(path, [name]) for path in modules):
        close = about or hint(name, sorted(part for part in _last_parts(modules) if not part.isdigit()))
        raise ConfigError(f"{setting}: the model has no module {shown(name)}.{close} There are {there}.")


def _last_parts(names: Iterable[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _is_named(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _trains_tied(config: RunConfig, model: PreTrainedModel) -> bool:
    """Whether embeddings that share their weights with the head are trained whole. Raises `ConfigError` if
    the head has a bias: PEFT would leave that out (seen with 0.21)."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = [path for path, module in model.named_modules() if module is embeddings or module is head]
    trained = [path for path in ends if _is_named(path, config.lora.modules_to_save)]
    if not trained or head is None or head.weight is not embeddings.weight:
        return False
    if getattr(head, "bias", None) is not None:
        raise ConfigError(
            f"{config.at('lora.modules_to_save')}lora.modules_to_save: PEFT would drop the bias of this "
            "model's head, which shares its weights with the embeddings; leave "
            f"{_listed(_last_parts(trained))} out, or train all weights (without --lora)."
        )
    return True


def _can_keep_tied() -> bool:
    return "ensure_weight_tying" in PeftLoraConfig.__dataclass_fields__
