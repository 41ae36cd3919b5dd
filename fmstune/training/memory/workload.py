"""The work of a built trainer, in the form that its memory estimate needs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fmstune.config.methods.known import METHODS
from fmstune.data.tokens.lengths import longest_rows, scored_tokens, sequence_lengths
from fmstune.training.memory.estimate import Workload
from fmstune.training.memory.placeholder_rows import rows_to_measure
from fmstune.training.memory.sharding import sharding
from fmstune.training.trl_compat.head import scores_labelled_alone
from fmstune.training.tuned_trainer import TunedTrainer
from fmstune.transformers_compat import attention_of


def workload(trainer: TunedTrainer) -> Workload | None:
    """The work of a trainer's longest batch; `None` if the model's shape is unknown."""
    model, args = trainer.model, trainer.args
    rows = rows_to_measure(trainer).with_format("arrow")
    settings = model.config.get_text_config()
    try:
        hidden, layers = int(settings.hidden_size), int(settings.num_hidden_layers)
        vocabulary = int(settings.vocab_size)
    except (AttributeError, TypeError, ValueError):
        return None
    limit = args.max_length
    batch = rows[longest_rows(rows, args.per_device_train_batch_size, limit)]
    lengths = sequence_lengths(batch, limit)
    padded = not getattr(trainer.data_collator, "padding_free", False)
    scored = scored_tokens(batch, limit)
    if METHODS[trainer.method].scores:
        scored, vocabulary = lengths.size, 1  # one number per sequence
    tokens = int(lengths.size * lengths.max() if padded else lengths.sum())
    head = trainer.lm_head
    tiled = args.device.type != "cpu" and head in ("tiled", None)
    if head in ("own", "logits") or (tiled and not scores_labelled_alone(args.device)):
        scored = tokens
    reference = trainer.ref_model
    heads = _setting(settings, "num_attention_heads") or 1
    head_width = _setting(settings, "head_dim") or hidden // heads
    spread = sharding(trainer)
    sizes = [_bytes(weight, master=spread.master) for weight in model.parameters()]
    trained = [_bytes(w, master=spread.master) for w in model.parameters() if w.requires_grad]
    reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")  # gradients reach the inputs
    half = spread.master or activations_in_half(model.parameters())
    return Workload(
        weights=sum(sizes),
        trained=sum(trained),
        largest_trained=max(trained, default=0),
        optimizer=str(getattr(args.optim, "value", args.optim)),
        rows=len(lengths),
        accumulation=args.gradient_accumulation_steps,
        tokens=tokens,
        longest=int(lengths.max()),
        scored=scored,
        layers=layers,
        hidden=hidden,
        heads_width=heads * head_width,
        keys_width=(_setting(settings, "num_key_value_heads") or heads) * head_width,
        intermediate=_intermediate(settings, hidden),
        vocabulary=vocabulary,
        heads=heads,
        half=half,
        autocast=bool(args.bf16 or args.fp16) and not half,
        checkpointing=bool(args.activation_checkpointing),
        eager_attention=attention_of(settings) == "eager",
        on_gpu=args.device.type != "cpu",
        tiled_head=tiled,
        direct_head=head == "direct",
        copied_inputs=bool(getattr(model, "is_loaded_in_8bit", False)),
        reference=sum(w.numel() * w.element_size() for w in reference.parameters()) if reference else 0,
        compared=not getattr(args, "precompute_ref_log_probs", True),
        sharding=spread,
        frozen_layers=0 if reentrant else _frozen_layers(model, layers),
    )


_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_AFTER_LAYERS = re.compile(r"(?:^|\.)(?:norm|ln_f|final_layernorm|final_layer_norm|norm_f|score)\.")


def _frozen_layers(model: Any, layers: int) -> int:
    """The first layers, if gradients end before them: neither they nor what is below them is trained."""
    first = layers
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if layer := _LAYER.search(name):
            first = min(first, int(layer[1]))
        elif not _AFTER_LAYERS.search(name) and weight is not _own_head(model):
            return 0
    return first


def _own_head(model: Any) -> Any:
    """The weights of the LM head; `None` if the embeddings share them."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return None if head is None or head.weight is embeddings.weight else head.weight


def _count(weight: Any) -> int:
    """The number of values in a weight; DeepSpeed's stage 3 only keeps the count of sharded ones."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def _bytes(weight: Any, *, master: bool) -> int:
    # With a master copy in the optimizer, computation uses 16 bits, whatever was loaded.
    return _count(weight) * min(2 if master else 8, int(weight.element_size()))


def activations_in_half(weights: Iterable[Any]) -> bool:
    """Whether activations have 16 bits, as most weights do. Quantized weights say nothing about it."""
    floats = [
        (_count(weight), int(weight.element_size())) for weight in weights if weight.is_floating_point()
    ]
    return sum(count * size for count, size in floats) < 3 * sum(count for count, _ in floats)


def _setting(settings: Any, name: str) -> Any:
    """A setting of the model, or `None`. Where each layer has its own (Gemma 4), the largest: transformers
    refuses to read that of the model then."""
    if name not in (getattr(settings, "per_layer_attributes", None) or ()):
        return getattr(settings, name, None)
    own = (getattr(layer, name, None) for layer in settings.per_layer_config)
    return max((value for value in own if isinstance(value, int)), default=None)


def _intermediate(settings: Any, hidden: int) -> int:
    """The inner width of the MLP that a token passes through, summed over its experts."""
    expert = _setting(settings, "moe_intermediate_size")
    experts = _setting(settings, "num_experts_per_tok")
    width = _setting(settings, "intermediate_size") or _setting(settings, "ffn_dim") or 4 * hidden
    if isinstance(experts, int) and experts > 0:
        return experts * (expert if isinstance(expert, int) else width)
    return width if isinstance(width, int) else 4 * hidden
