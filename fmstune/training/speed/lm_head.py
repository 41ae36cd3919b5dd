"""The loss of TRL's trainer, computed in the fastest way that equals the model's own `forward`.

TRL 1.16 never calls that `forward`. It multiplies the last hidden states of the backbone with the weights of
the LM head, in tiles that the backward pass recomputes. This has two problems. TRL knows what an architecture
does between or after the two only from a list of config fields, which is incomplete (RecurrentGemma's
`logits_soft_cap` gives a loss of 49.5 instead of 7.3). And on a CPU, where memory is not the limit,
recomputing everything, prompts and padding included, costs more than it saves
(tests/benchmarks/train_speed.py).

So each model is tested once to find out which way is exact. There is no list of architectures here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from peft.utils import ModulesToSaveWrapper
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel

from fmstune.data.tokens.table import IGNORED
from fmstune.models.probe import evaluated, probe, succeeds
from fmstune.training.speed.log_probs import scores
from fmstune.training.trl_compat.head import (
    FUSED,
    FusedCausalLMOutput,
    HeadCall,
    on_whole_weights,
    score_by,
)
from fmstune.training.tuned_trainer import Head

_LARGE_LOGIT = 128.0
"""Caps start at 15 to 50; the small logits of a new model would not reach them."""
_KNOWN_TO_TRL = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling",
)  # fmt: skip
_OF_LOGITS = re.compile("soft_?cap|logits?_.*(scal|multiplier)|head_multiplier")
_OF_OTHERS = re.compile("attn|attention|router|gate|^up_")
_SAME = 0.02
"""Relative to the largest log-probability: above rounding in bfloat16, far below a missing cap or scale."""


def fit_lm_head(model: PreTrainedModel, *, direct: bool, experts: bool = False) -> Head:
    """Make `model`, which already has TRL's fused LM head, compute the loss of its own `forward`.

    `direct` allows the direct way, which keeps all trained logits in memory at once. The model is tested with
    one short row; the main process decides for all, as the others may not have their weights yet. `experts`
    asks for the loss that balances the experts' load as well.
    """
    found: Head = broadcast_object_list([_fitting(model, direct=direct, experts=experts)])[0]
    if found == "direct":
        score_by(model, _direct)
    elif found == "own":
        score_by(model, _own)
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        score_by(model, _tiled)  # FSDP may shard the model later
    return found


def _fitting(model: PreTrainedModel, *, direct: bool, experts: bool) -> Head:
    if any(weight.is_meta or hasattr(weight, "ds_id") for weight in model.parameters()):
        # DeepSpeed has partitioned its weights, so it cannot be tested.
        # TRL assumes that the head is the last layer; BERT models wrap it in a larger one.
        inner = all(part is not model.get_output_embeddings() for part in model.children())
        return "own" if inner or _unknown_to_trl(model.config.get_text_config()) else "tiled"
    with evaluated(model), on_whole_weights():
        if direct and not experts and succeeds(lambda: _ends_with_its_head(model)):
            return "direct"
        if succeeds(lambda: _tiled_is_exact(model) and (not experts or _tiled_balances(model))):
            return "tiled"
    return "own"


def _unknown_to_trl(config: PreTrainedConfig) -> bool:
    """Whether a config field looks like a logit cap or scale that TRL does not know."""
    return any(
        value not in (None, False, 1)
        and name not in _KNOWN_TO_TRL
        and _OF_LOGITS.search(name)
        and not _OF_OTHERS.search(name)
        for name, value in config.to_dict().items()
    )


def _plain_head(model: PreTrainedModel) -> torch.nn.Linear:
    """The LM head. Raises `TypeError` if it is not a plain linear layer (quantized, with an adapter)."""
    head: Any = model.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper) and head.active_adapters:
        # A copy that is trained whole. PEFT passes `weight` and `bias` on to it, or to the original while the
        # adapter is disabled.
        head = head.modules_to_save[head.active_adapters[0]]
    if type(head) is not torch.nn.Linear:
        raise TypeError(type(head).__name__)
    return head


def _ends_with_its_head(model: PreTrainedModel) -> bool:
    """Whether the logits are exactly the linear head of the backbone's last hidden state.

    The head's output is scaled up during the test, so that a cap after it shows.
    """
    head = _plain_head(model)
    seen: dict[str, torch.Tensor] = {}

    def enlarged(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        seen["hidden"] = args[0]
        seen["logits"] = output * (_LARGE_LOGIT / output.abs().max().clamp(min=1e-6))
        return seen["logits"]

    ids = probe(model)
    hook = head.register_forward_hook(enlarged)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    same = torch.equal(logits.float(), seen["logits"].float())
    return same and bool(torch.allclose(hidden, seen["hidden"]))


def _tiled_is_exact(model: PreTrainedModel) -> bool:
    """Whether TRL's fused head returns the log-probabilities of the model's own logits, even scaled up."""
    head = _plain_head(model)
    name = next(key for key, weight in model.named_parameters() if weight is head.weight)
    ids = probe(model)
    largest = float(model(input_ids=ids, use_cache=False).logits.abs().max())
    weights = {name: head.weight * (_LARGE_LOGIT / max(largest, 1e-6))}
    own = functional_call(model, weights, kwargs={"input_ids": ids, "use_cache": False}).logits
    fused = functional_call(model, weights, kwargs={"input_ids": ids, "labels": ids, **FUSED})
    expected = own[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return float((fused.log_probs - expected).abs().max()) <= _SAME * float(expected.abs().max())


def balances_experts(model: PreTrainedModel) -> bool:
    """Whether the model's own forward returns the loss that balances the load of its experts."""
    with evaluated(model):
        return succeeds(lambda: _balance(model) is not None)


def _tiled_balances(model: PreTrainedModel) -> bool:
    """Whether TRL's balancing loss is the model's own. TRL reads the number of experts from one field."""
    own, found = _balance(model), _balance(model, labels=probe(model), **FUSED)
    return own is not None and found is not None and bool(torch.allclose(found, own, rtol=1e-3))


def _balance(model: PreTrainedModel, **kwargs: Any) -> torch.Tensor | None:
    output = model(input_ids=probe(model), use_cache=False, output_router_logits=True, **kwargs)
    found = getattr(output, "aux_loss", None)
    return found if isinstance(found, torch.Tensor) else None


def _direct(call: HeadCall) -> FusedCausalLMOutput:
    """Apply the head only to trained positions. Pre-shifted labels and expert losses are left to TRL."""
    model = call.model
    experts = call.kwargs.get("output_router_logits") or getattr(
        model.config.get_text_config(), "output_router_logits", False
    )
    if call.shifted is not None or experts:
        return call.by_trl()
    hidden = model.base_model(*call.args, **call.kwargs).last_hidden_state[:, :-1]
    targets = call.labels[:, 1:]
    mask = targets != IGNORED
    logits = model.get_output_embeddings()(hidden[mask])  # called: FSDP2 gathers its weights in a hook
    return _figures(logits, targets, mask, call.items)


def _tiled(call: HeadCall) -> FusedCausalLMOutput:
    """TRL's own way."""
    with _head_called(call.model):
        return call.by_trl()


@contextlib.contextmanager
def _head_called(model: PreTrainedModel) -> Iterator[None]:
    """Within this context, FSDP2 treats the LM head as called after the backbone. TRL only reads its weights.

    FSDP2 gathers and releases weights, and reduces their gradients, in hooks around `forward`. Accelerate
    makes the final norm and the head one unit, or the head alone, below adapters. Without the call:
    - A head alone would stay sharded. TRL then gathers it, but a trained one (`lora.modules_to_save`) would
      get the gradient of one process's rows only, instead of the mean over all.
    - Before torch 2.13, the unit of both would stay in the middle of a forward pass after an evaluation. A
      checkpoint then shards its weights again, and the next pass would not gather them and fail. After a
      backward pass torch completes it, and warns that a module "did not run forward before backward".
    """
    head = model.get_output_embeddings()
    if not isinstance(head, FSDPModule):
        yield
        return

    def call(module: torch.nn.Module, args: Any, output: Any) -> None:
        head(output.last_hidden_state[:, :0])

    hook = model.base_model.register_forward_hook(call)
    try:
        yield
    finally:
        hook.remove()


def _own(call: HeadCall) -> FusedCausalLMOutput:
    """The model's own logits, for all positions."""
    output = call.plain(*call.args, **call.kwargs)
    logits, targets = output.logits, call.shifted
    if targets is None:
        logits, targets = logits[:, :-1], call.labels[:, 1:]
    targets = targets.to(logits.device)
    mask = targets != IGNORED
    figures = _figures(logits[mask], targets, mask, call.items)
    figures.aux_loss = getattr(output, "aux_loss", None)
    with torch.no_grad():  # needed for dpo with WPO weighting; TRL's way computes it on demand
        squares = torch.logsumexp(2 * torch.log_softmax(logits[mask].float(), dim=-1), dim=-1)
        figures.log_sum_sq_probs = squares.new_zeros(mask.shape).masked_scatter(mask, squares)
    return figures


def _figures(
    logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, items: torch.Tensor | int | None
) -> FusedCausalLMOutput:
    """Log-probability, entropy, mean logit and correctness of each labelled position; zero elsewhere.

    `logits` is (labelled positions, vocabulary) and is overwritten. `labels` and `mask`, (batch, length), are
    already shifted.
    """
    found = scores(logits.float(), labels[mask])

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    scattered = spread(found.log_probs)
    count = mask.sum().clamp(min=1) if items is None else items
    return FusedCausalLMOutput(
        loss=-scattered.sum() / count,
        log_probs=scattered,
        entropy=spread(found.entropy),
        log_sum_sq_probs=None,
        mean_logits=spread(found.mean_logits),
        is_top1=spread(found.is_top1),
        label_mask=mask,
        aux_loss=None,
    )
