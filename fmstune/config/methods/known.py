"""The available methods: the values of `run.method`.

TRL 1.16 has more stable trainers, with other needs: GRPO and RLOO generate text and need reward functions,
and Distillation needs a teacher model. All its other trainers for pairs (ORPO, CPO, …) are experimental; the
most requested of them is included, and marked.
"""

from __future__ import annotations

from collections.abc import Mapping

from fmstune.config.methods.dpo import DPO
from fmstune.config.methods.kto import KTO
from fmstune.config.methods.orpo import ORPO
from fmstune.config.methods.record import Form, Method
from fmstune.config.methods.reward import REWARD
from fmstune.config.methods.sft import SFT

METHODS: Mapping[str, Method] = {method.name: method for method in (SFT, DPO, KTO, REWARD, ORPO)}
"""All methods by name; the first is the default."""
DEFAULT = next(iter(METHODS))


def methods_for(*forms: Form) -> str:
    """List the methods that take rows of one of these forms, for messages: `dpo, kto or reward`."""
    *names, last = [method.name for method in METHODS.values() if method.form in forms]
    return f"{', '.join(names)} or {last}" if names else last


def in_help() -> str:
    """List all methods by kind of data: `from examples: sft; from preferences: dpo, kto, reward`."""
    kinds = dict.fromkeys(method.learns for method in METHODS.values())
    found = {kind: [each.title for each in METHODS.values() if each.learns == kind] for kind in kinds}
    return "; ".join(f"from {kind}: {', '.join(titles)}" for kind, titles in found.items())
