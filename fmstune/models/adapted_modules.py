"""Which parts of a model an adapter changes, which are trained whole, and which it leaves out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from fmstune.config.check.suggest import hint
from fmstune.errors import ConfigError
from fmstune.text import shown
from fmstune.transformers_compat import linear_like

CONV1D = linear_like()
ADAPTABLE = (torch.nn.Linear, torch.nn.Embedding, CONV1D)
"""The classes of modules that an adapter can be on."""


def _on_parameter(module: Any) -> bool:
    return hasattr(module, "parameter_name") and hasattr(module, "base_layer")


def adapted_parameters(model: PeftModel) -> set[str]:
    """The parameters with their own adapter: the experts of some models, for example."""
    return {_named(path, module) for path, module in model.named_modules() if _on_parameter(module)}


def _named(path: str, module: Any) -> str:
    """The name of a parameter with an adapter, like `experts.down_proj`, or of its module if that has no
    others."""
    name = path.replace(".base_layer", "").rpartition(".")[2]
    return name if module.parameter_name == "weight" else f"{name}.{module.parameter_name}"


def trained_whole(model: PeftModel) -> set[str]:
    """The modules that are trained and saved whole, including those that share their weights. Neither is the
    same as the configured list: that also has the names of classifier heads in any architecture, and paths of
    modules that are tied to the named ones."""
    wrapped = {
        name: module for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)
    }
    weights = [
        weight for module in wrapped.values() for weight in module.parameters() if weight.requires_grad
    ]
    tied = [
        name
        for name, module in model.named_modules()
        if any(getattr(module, "weight", None) is weight for weight in weights)
        and not any(name.startswith(f"{path}.") for path in wrapped)
    ]
    return {name.rpartition(".")[2] for name in (*wrapped, *tied)}


def fitting_parameters(names: Sequence[str], model: PreTrainedModel, setting: str) -> list[str]:
    """The names, if each is the end of the path of a parameter that PEFT can adapt by itself. Raises
    `ConfigError`, which starts with `setting`."""
    there = {
        path: weight
        for path, weight in model.named_parameters()
        if not path.endswith("bias")
        and (weight.ndim == 3 or (weight.ndim == 2 and not _is_module(model, path)))
    }
    ends = sorted({".".join(path.split(".")[-2:]) for path in there})
    for name in names:
        if any(path == name or path.endswith(f".{name}") for path in there):
            continue
        for path, weight in model.named_parameters():
            if path == name or path.endswith(f".{name}"):
                raise ConfigError(f"{setting}: {shown(name)} is {_otherwise(path, weight)}.")
        available = (
            f" There are {', '.join(ends)}."
            if ends
            else " All of its matrices are those of modules: name these in lora.target_modules."
        )
        raise ConfigError(
            f"{setting}: the model has no such parameter {shown(name)}.{hint(name, ends)}{available}"
        )
    return list(names)


def _otherwise(path: str, weight: torch.Tensor) -> str:
    """What a parameter is that cannot be adapted by itself, and how it is trained."""
    if path.endswith("bias"):
        return 'a bias, which no adapter can be on: lora.bias = "all" trains biases'
    if weight.ndim != 2:
        return "no matrix, which an adapter needs: lora.modules_to_save trains its module whole"
    return "the weight of a module; name that in lora.target_modules"


def _is_module(model: PreTrainedModel, path: str) -> bool:
    """Whether a parameter is the weight of a linear layer or of embeddings."""
    return isinstance(model.get_submodule(path.rpartition(".")[0]), ADAPTABLE)


def about_experts(name: str, model: PreTrainedModel) -> str:
    """A sentence for the name of one expert, where those of a layer are parameters of one module."""
    of_all = {
        path.rpartition(".")[2] for path, module in model.named_modules() if _is_of_experts(path, module)
    }
    if not of_all or "expert" not in name:
        return ""
    return (
        f" All experts of a layer are one module, {', '.join(sorted(of_all))}, for lora.modules_to_save; "
        "lora.target_parameters adapts its weights."
    )


def _is_of_experts(path: str, module: torch.nn.Module) -> bool:
    return path.endswith("experts") and any(weight.ndim > 2 for weight in module.parameters(recurse=False))


def unreached_experts(model: Any, targets: Any) -> str | None:
    """A sentence about an adapter on `all-linear` that leaves out experts: in most architectures these are
    parameters of one module for all experts, and not linear layers."""
    if not isinstance(model, PeftModel) or targets != "all-linear":
        return None
    left = {
        name: weight.numel()
        for name, weight in model.named_parameters()
        if "expert" in name
        and weight.ndim > 2
        and not weight.requires_grad
        and ".base_layer." not in name
        and ".original_module." not in name  # a copy of it is trained whole
    }
    if not left:
        return None
    share = sum(left.values()) / sum(weight.numel() for weight in model.parameters())
    names = sorted({".".join(name.split(".")[-2:]) for name in left})
    return (
        "lora.target_modules = all-linear does not reach the experts, which are not linear layers in this "
        f"model: {share:.0%} of the weights are not trained; to train them, set lora.target_parameters = "
        f"{json.dumps(names)}"
    )
