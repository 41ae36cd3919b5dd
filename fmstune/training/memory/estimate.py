"""The estimated peak memory of a training, from the model's shape and the longest batch.

The activation sizes were determined by counting what autograd keeps for Llama-like models in torch 2.13
(float32, and bf16 under autocast). The total is within a tenth of the measured peak of runs on a CPU and on
an H100 (tests/training/test_memory.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from fmstune.system.memory import format_bytes
from fmstune.training.memory.sharding import ALONE, Sharding

_LOGITS_FORWARD = 5
"""Tensors of the size of the logits while torch's own functions compute the loss: the logits, their
log-softmax twice, its exponential and the product of the two for the entropy. The direct head has one
(`log_probs`)."""
_LOGITS_BACKWARD = 3
_LOGITS_KEPT = 2
"""Those of the trained model that are kept for its backward pass, also while the reference computes its
own."""
_TILE = (4096, 32768)
"""The number of positions times vocabulary entries that TRL's own LM head holds logits of at once."""

_STARTED = 40_000_000
"""What libraries load and reserve at the first step."""
_SCATTERED, _SCATTERED_BY_ADAPTERS, _SCATTERED_ON_GPU = 1.15, 1.55, 1.08
"""Fragmentation: memory between tensors that fits no other. Adapters add many small tensors: 1.4 to 1.7 on
a CPU (SmolLM2), while CUDA's allocator has separate pools for them."""

_STATES = {
    **dict.fromkeys(("sgd", "lomo", "adafactor", "adalomo"), 0.0),
    **dict.fromkeys(("adagrad", "rmsprop", "lion_32bit", "paged_lion_32bit", "schedule_free_sgd"), 1.0),
    **dict.fromkeys(("rmsprop_bnb", "rmsprop_bnb_32bit"), 1.0),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit", "grokadamw"), 3.0),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), 0.5),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit", "adamw_torch_4bit"), 0.25),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 0.75),
    # They keep the moments of a projection of the gradients, a quarter of their size by default.
    **dict.fromkeys(("galore_adamw", "apollo_adamw", "galore_adafactor", "galore_adamw_8bit"), 0.5),
}
_ADAMW = 2.0
"""Values that an optimizer stores per trained weight, in the size of the weight (8-bit ones: in that of
float32). Those not listed are kinds of AdamW."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The peak work of a training. Sizes of weights are in bytes, `tokens` is for the longest batch
    including its padding, and the LM head computes logits for `scored` of these."""

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
    """The width of all query heads together; `keys_width` that of all key heads."""
    keys_width: int
    intermediate: int
    vocabulary: int
    heads: int
    half: bool
    """Whether the weights have 16 bits."""
    autocast: bool
    """Whether it computes in 16 bits with 32-bit weights."""
    checkpointing: bool
    eager_attention: bool
    on_gpu: bool
    tiled_head: bool = False
    """Whether the logits are computed in TRL's tiles, never all at once."""
    direct_head: bool = False
    """Whether one tensor is the logits, their softmax and their gradient in turn."""
    copied_inputs: bool = False
    """Whether each layer keeps its input in 16 bits, as those with 8-bit weights do."""
    reference: int = 0
    """The weights of the reference model in bytes; an adapter needs none."""
    compared: bool = False
    """Whether a reference also scores each batch."""
    sharding: Sharding = ALONE
    copied: int = 0
    """The main-memory copy of a checkpoint that is written while training continues."""
    frozen_layers: int = 0
    """The first layers, which gradients do not reach, and which keep nothing for the backward pass."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory of a training in bytes, by purpose, for all processes in the same memory. Not all of it is
    held at once, and some is needed only briefly: `peak` is not the sum. `activations` are kept for the
    backward pass, `program` is Python and its libraries, if they are in the same memory, and `offloaded`
    what a GPU's process holds in main memory instead."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    program: int = 0
    offloaded: int = 0
    copied: int = 0

    def line(self) -> str:
        """A readable line: `weights 538 MB, gradients 538 MB, …`."""
        parts = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("the program itself", self.program),
            ("a checkpoint's copy", self.copied),
            ("in main memory", self.offloaded),
        ]
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)


def estimate(work: Workload, program: int = 0) -> Estimate:
    """The peak memory of this work, per GPU, or on a CPU for all processes of this machine, each of which
    also has the `program`."""
    sharding = work.sharding
    per_layer = work.tokens * _kept_by_layer(work)
    layers = work.layers - work.frozen_layers
    kept = per_layer * layers
    if work.checkpointing:
        # The input of each layer; one layer at a time is recomputed.
        kept = work.tokens * work.hidden * _value(work) * layers + (per_layer if layers else 0)
    # Those that shard the weights create the 16-bit copies while gathering.
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
    buckets = work.trained if sharding.buckets else _collected(work)
    unreduced = min(work.trained, _layer_weights(work)) if sharding.gradients > 1 else 0
    held = gradients if work.accumulation > 1 or sharding.keeps_gradients else 0
    update = 3 * work.largest_trained // sharding.optimizer if work.optimizer == "adafactor" else 0
    if sharding.collected:  # DeepSpeed updates with a copy of the gradients, in 32 bits
        update += gradients * (2 if work.half else 1)
    most = max(
        held + kept + max(forward, backward), gradients + unreduced + per_layer + copies, gradients + update
    )
    by_adapters = _SCATTERED_ON_GPU if work.on_gpu else _SCATTERED_BY_ADAPTERS
    most = int(most * (_SCATTERED if trains_all else by_adapters)) + _STARTED
    copied = 0 if work.on_gpu else work.copied
    peak = weights + buckets + states + most + copied
    if not work.on_gpu:
        peak = max(peak, work.weights + work.reference)  # before they are sharded each process loads them
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
    """Bytes that the LM head and the loss keep for the backward pass, and the temporary ones in the forward
    and in the backward pass."""
    value = 2 if work.half or work.autocast else 4
    inputs = work.scored * work.hidden
    if work.tiled_head:
        tile = min(work.scored, _TILE[0]) * min(work.vocabulary, _TILE[1]) * value
        return inputs * value, tile + inputs * value, tile + inputs * 4
    logits = work.scored * work.vocabulary * 4
    if work.direct_head:
        kept = logits + inputs * value
        most = kept + (logits // 2 if value == 2 else 0)  # the head's own, and their gradient, have 16 bits
        return kept, most, most
    return logits * _LOGITS_KEPT, logits * _LOGITS_FORWARD, logits * _LOGITS_BACKWARD


def optimizer_size(work: Workload) -> int:
    """The optimizer state of all processes together, in bytes."""
    return _states(work)


def _states(work: Workload) -> int:
    values = _STATES.get(work.optimizer, _ADAMW)
    if work.sharding.master:
        return int(2 * work.trained * (1 + values))
    if work.sharding.copies_weights:
        return int(work.trained * (1 + values))
    return int(work.trained * values * (2 if _small_states(work) else 1))


def _gathered(work: Workload) -> int:
    """The gathered weights if each process has a shard of them: those of the current layer and the next,
    with the embeddings, or the whole model's."""
    if work.sharding.weights == 1:
        return 0
    layers = 2 * _layer_weights(work) + _head_weights(work)
    whole = work.weights if work.sharding.gathers_model else min(layers, work.weights)
    return whole // 2 if work.autocast else whole


def _collected(work: Workload) -> int:
    """DeepSpeed's buffers for gradients. Main memory that is never written to is not used."""
    value = 2 if work.half else 4
    size = value * work.sharding.collected
    return size if work.on_gpu else min(size, work.trained)


def _layer_weights(work: Workload) -> int:
    return max(0, work.weights - _head_weights(work)) // work.layers


def _kept_by_layer(work: Workload) -> float:
    """Bytes per token that a layer keeps for the backward pass.

    Two norms with their residual (6 widths), queries, keys and values, the attention's output twice, and four
    times the inner width of a gated MLP.
    """
    in_float32 = not work.half and not work.autocast
    # torch's only kernel for float32 on a GPU takes the keys and values of each query head.
    keys_width = work.heads_width if work.on_gpu and in_float32 else work.keys_width
    values = 6 * work.hidden + 3 * work.heads_width + 2 * keys_width + 4 * work.intermediate
    kept = values * _value(work)
    if work.copied_inputs:
        kept += 2 * (5 * work.hidden + work.heads_width + work.intermediate)
    if work.eager_attention:
        kept += 3 * work.heads * work.longest * (2 if work.half or work.autocast else 4)
    return kept


def _value(work: Workload) -> float:
    """Bytes of a kept value. In 16 bits the norms still keep some 32-bit ones."""
    return 2.6 if work.autocast else 2.4 if work.half else 4.0


def _head_weights(work: Workload) -> int:
    return work.vocabulary * work.hidden * (2 if work.half else 4)


def _small_states(work: Workload) -> bool:
    """Whether the optimizer's states differ in size from the weights, which have half the usual size."""
    return work.half and ("bit" in work.optimizer and "32bit" not in work.optimizer)
