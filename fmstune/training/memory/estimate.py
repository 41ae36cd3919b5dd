"""How much memory a training will need at most: an estimate from the model's shape and the longest batch.

The figures of the activations were found by counting what autograd keeps of Llama-like models in torch 2.13
(float32, and bf16 under autocast). The whole is within a tenth of the measured peak of runs on a CPU and on
an H100 (tests/training/test_memory.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from fmstune.system.memory import amount
from fmstune.training.memory.sharding import ALONE, Sharding

_LOGITS_FORWARD = 5
"""Tensors of the size of the logits while torch's own functions compute the loss: they, their log-softmax
twice, its exponential and the product of the two for the entropy. The direct head has one (`log_probs`)."""
_LOGITS_BACKWARD = 3
_LOGITS_KEPT = 2
"""Those of the trained model that wait for its backward pass, also while the reference computes its own."""
_TILE = (4096, 32768)
"""TRL's own LM head holds the logits of so many positions and tokens of the vocabulary at once."""

_STARTED = 40_000_000
"""What libraries load and set aside at the first step."""
_SCATTERED, _SCATTERED_BY_ADAPTERS, _SCATTERED_ON_GPU = 1.15, 1.55, 1.08
"""Memory between tensors that no other fits into. Adapters add many small tensors: 1.4 to 1.7 on a CPU
(SmolLM2), where CUDA's allocator has pools of their own for them."""

_STATES = {
    **dict.fromkeys(("sgd", "lomo", "adafactor", "adalomo"), 0.0),
    **dict.fromkeys(("adagrad", "rmsprop", "lion_32bit", "paged_lion_32bit", "schedule_free_sgd"), 1.0),
    **dict.fromkeys(("rmsprop_bnb", "rmsprop_bnb_32bit"), 1.0),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit", "grokadamw"), 3.0),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), 0.5),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit", "adamw_torch_4bit"), 0.25),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 0.75),
    # They keep the moments of a projection of the gradients, of a quarter of its size at their defaults.
    **dict.fromkeys(("galore_adamw", "apollo_adamw", "galore_adafactor", "galore_adamw_8bit"), 0.5),
}
_ADAMW = 2.0
"""Values that an optimizer remembers of each trained one, in the size of the weight (of 8 bits: in that of
float32). Those not listed are kinds of AdamW."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a training does at most at once. Sizes of weights are in bytes, `tokens` is of the longest batch,
    with its padding, and the LM head computes logits for `scored` of these."""

    weights: int
    trained: int
    largest_trained: int
    optimizer: str
    rows: int
    accumulation: int
    tokens: int
    longest: int
    scored: int
    layers: int
    hidden: int
    heads_width: int
    """Of all query heads together; `keys_width` of all key heads."""
    keys_width: int
    intermediate: int
    vocabulary: int
    heads: int
    half: bool
    """Whether the weights are of 16 bits."""
    autocast: bool
    """Whether it is computed in 16 bits with weights of 32."""
    checkpointing: bool
    eager_attention: bool
    on_gpu: bool
    tiled_head: bool = False
    """Whether the logits are computed in TRL's tiles, never all at once."""
    direct_head: bool = False
    """Whether one tensor is the logits, their softmax and their gradient in turn."""
    reference: int = 0
    """The weights of a model that the trained one is compared with, in bytes; an adapter needs none."""
    compared: bool = False
    """Whether each batch is scored by a reference too."""
    sharding: Sharding = ALONE
    copied: int = 0
    """The copy of a checkpoint that is written while the training goes on, in main memory."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of a training in bytes, by what takes it, of all processes in the same memory. Not all of it
    is held at once, and for moments there is more: `peak` is not the sum. `activations` wait for the backward
    pass, `program` is Python and its libraries, where they are in the same memory, and `offloaded` what a
    GPU's process holds in main memory instead."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    program: int = 0
    offloaded: int = 0
    copied: int = 0

    def line(self) -> str:
        """For people: `weights 538 MB, gradients 538 MB, …`."""
        parts = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("the program itself", self.program),
            ("a checkpoint's copy", self.copied),
            ("in main memory", self.offloaded),
        ]
        return ", ".join(f"{name} {amount(size)}" for name, size in parts if size)


def estimate(work: Workload, program: int = 0) -> Estimate:
    """The most that this work holds at once, on each GPU, or on a CPU in all processes of this machine; each
    of them has the `program` too."""
    sharding = work.sharding
    per_layer = work.tokens * _kept_by_layer(work)
    kept = per_layer * work.layers
    if work.checkpointing:
        # The input of each layer; one layer at a time is computed again.
        kept = work.tokens * work.hidden * _value(work) * work.layers + per_layer
    # Those that divide the weights make the copies of 16 bits as they put them together.
    copies = (work.weights - _head_weights(work)) // 2 if work.autocast and sharding.weights == 1 else 0
    kept = int(kept + copies)
    trains_all = work.trained > work.weights // 2
    loss, forward, backward = _loss(work)
    backward += _head_weights(work) if trains_all else 0
    if work.compared:
        forward += loss
    parts = {
        "weights": (work.weights + work.reference) // sharding.weights,
        "gradients": work.trained // sharding.gradients,
        "optimizer": _states(work) // sharding.optimizer,
    }
    moved = sharding.offloaded if work.on_gpu else frozenset()
    weights, gradients, states = (0 if name in moved else size for name, size in parts.items())
    weights += _gathered(work)
    buckets = work.trained if sharding.buckets else 0
    unreduced = min(work.trained, _layer_weights(work)) if sharding.gradients > 1 else 0
    held = gradients if work.accumulation > 1 else 0
    update = 3 * work.largest_trained // sharding.optimizer if work.optimizer == "adafactor" else 0
    most = max(
        held + kept + max(forward, backward), gradients + unreduced + per_layer + copies, gradients + update
    )
    by_adapters = _SCATTERED_ON_GPU if work.on_gpu else _SCATTERED_BY_ADAPTERS
    most = int(most * (_SCATTERED if trains_all else by_adapters)) + _STARTED
    copied = 0 if work.on_gpu else work.copied
    peak = weights + buckets + states + most + copied
    if not work.on_gpu:
        peak = max(peak, work.weights + work.reference)  # before they are divided each process loads them
    alike = sharding.sharing
    return Estimate(
        weights=alike * weights,
        gradients=alike * (gradients + buckets),
        optimizer=alike * states,
        activations=alike * (kept + loss),
        peak=alike * (program + peak),
        program=alike * program,
        offloaded=sum(parts[name] for name in moved),
        copied=copied,
    )


def _loss(work: Workload) -> tuple[int, int, int]:
    """Bytes that the LM head and the loss keep for the backward pass, and that they take with it in the
    forward and in the backward pass."""
    value = 2 if work.half or work.autocast else 4
    inputs = work.scored * work.hidden
    if work.tiled_head:
        tile = min(work.scored, _TILE[0]) * min(work.vocabulary, _TILE[1]) * value
        return inputs * value, tile + inputs * value, tile + inputs * 4
    logits = work.scored * work.vocabulary * 4
    if work.direct_head:
        kept = logits + inputs * value
        most = kept + (logits // 2 if value == 2 else 0)  # the head's own, and their gradient, are of 16 bits
        return kept, most, most
    return logits * _LOGITS_KEPT, logits * _LOGITS_FORWARD, logits * _LOGITS_BACKWARD


def optimizer_size(work: Workload) -> int:
    """What the optimizer remembers, of all processes together, in bytes."""
    return _states(work)


def _states(work: Workload) -> int:
    values = _STATES.get(work.optimizer, _ADAMW)
    if work.sharding.master:
        return int(2 * work.trained * (1 + values))
    return int(work.trained * values * (2 if _small_states(work) else 1))


def _gathered(work: Workload) -> int:
    """The weights that are put together where each process has a share of them: those of the layer at work
    and of the next, beside the embeddings, or the whole model's."""
    if work.sharding.weights == 1:
        return 0
    layers = 2 * _layer_weights(work) + _head_weights(work)
    whole = work.weights if work.sharding.gathers_model else min(layers, work.weights)
    return whole // 2 if work.autocast else whole


def _layer_weights(work: Workload) -> int:
    return max(0, work.weights - _head_weights(work)) // work.layers


def _kept_by_layer(work: Workload) -> float:
    """Bytes that a layer keeps of each token for the backward pass.

    Of two norms with their residual (6 widths), queries, keys and values, the attention's output twice, and
    four of the inner width in a gated MLP.
    """
    values = 6 * work.hidden + 3 * work.heads_width + 2 * work.keys_width + 4 * work.intermediate
    kept = values * _value(work)
    if work.eager_attention:
        kept += 3 * work.heads * work.longest * (2 if work.half or work.autocast else 4)
    return kept


def _value(work: Workload) -> float:
    """Bytes of a value that is kept. In 16 bits the norms still keep some of 32."""
    return 2.6 if work.autocast else 2.4 if work.half else 4.0


def _head_weights(work: Workload) -> int:
    return work.vocabulary * work.hidden * (2 if work.half else 4)


def _small_states(work: Workload) -> bool:
    """Whether the optimizer's states are of a size of their own, for weights of half the usual one."""
    return work.half and ("bit" in work.optimizer and "32bit" not in work.optimizer)
