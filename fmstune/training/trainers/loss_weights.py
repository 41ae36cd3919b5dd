"""Token weights in the sft loss: the loss of an update is Σ weight · loss / Σ weight over its tokens.

TRL only distinguishes tokens that count from those that do not. It divides the sum over an update by their
number, but by at least 1. So the weights are scaled to a mean of 1 over all batches and processes of the
update, and multiply the log-probabilities that the model returns. This works for every way in which
`lm_head` computes them. Without weights there is no such column, and this module does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fmstune.data.tokens.table import IGNORED, LOSS_WEIGHTS
from fmstune.training.speed.flat_batches import REAL_TOKENS, flat_batch
from fmstune.training.trl_compat.head import FusedCausalLMOutput
from fmstune.training.trl_compat.hooks import PrivateHooks
from fmstune.training.tuned_trainer import as_trainer


@dataclass
class WeightedCollator(DataCollatorForLanguageModeling):
    """TRL's collator, which also collates the weights, in the shape of the labels."""

    @classmethod
    def of(cls, collator: DataCollatorForLanguageModeling) -> WeightedCollator:
        """Create one with the settings of a TRL collator."""
        return cls(**{each.name: getattr(collator, each.name) for each in fields(collator)})

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows. Either all rows have a weights column or none, so that no process waits for another's
        sum of weights."""
        # In packed rows, `seq_lengths` marks where each row starts.
        plain = self.padding_free and not self.pad_to_multiple_of and "seq_lengths" not in examples[0]
        batch: dict[str, Any] = flat_batch(examples) if plain else super().torch_call(examples)
        if self.padding_free and self.pad_to_multiple_of:
            batch[REAL_TOKENS] = sum(len(each["input_ids"]) for each in examples)
        if LOSS_WEIGHTS in examples[0]:
            given = [each[LOSS_WEIGHTS] or [1.0] * len(each["input_ids"]) for each in examples]
            rows = [torch.tensor(each, dtype=torch.float32) for each in given]
            if self.padding_free:
                rows = [torch.cat(rows)]
            weights = torch.zeros(batch["labels"].shape)
            for row, values in zip(weights, rows, strict=True):
                row[: len(values)] = values
            batch[LOSS_WEIGHTS] = weights
        return batch


class WeightedLoss(PrivateHooks):
    """A mixin for TRL's SFTTrainer, before it, that applies the weights column of a batch to the loss."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss over weighted tokens."""
        trainer = as_trainer(super())
        weights = inputs.get(LOSS_WEIGHTS)
        if weights is not None:
            inputs = {name: value for name, value in inputs.items() if name != LOSS_WEIGHTS}
            # Without `num_items_in_batch`, the loss is the batch's own mean: it was not scaled with others.
            weighs = _Weighs(weights, own_mean=num_items_in_batch is None)
            hook = model.register_forward_hook(weighs)
        try:
            return trainer.compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        finally:
            if weights is not None:
                hook.remove()

    more_columns = (LOSS_WEIGHTS,)

    def count_items(self, batches: list[Any], device: Any) -> Any:
        """The Trainer's number of trained tokens; the weights are scaled so that this is their sum."""
        items = super().count_items(batches, device)
        if items is None or LOSS_WEIGHTS not in batches[0]:
            return items
        this = as_trainer(self)
        sums = torch.stack([_count_and_weight(batch) for batch in batches]).sum(0).to(device)
        if this.args.world_size > 1 and this.args.average_tokens_across_devices:
            sums = this.accelerator.gather(sums).view(-1, 2).sum(0)
        scale = _scale(*sums)
        for batch in batches:
            batch[LOSS_WEIGHTS] = batch[LOSS_WEIGHTS] * scale.to(batch[LOSS_WEIGHTS].device)
        return items

    def prepare_rows(self, rows: Any, args: Any, packing: bool, prepared: Callable[[Any], Any]) -> Any:
        """Replace TRL's packing and truncation, which would lose the weights."""
        if LOSS_WEIGHTS not in (rows.column_names or ()):
            return super().prepare_rows(rows, args, packing, prepared)
        if packing:
            return packed(rows, args)
        if args.max_length is not None:
            most = args.max_length
            kept = slice(-most, None) if args.truncation_mode == "keep_end" else slice(most)
            rows = rows.map(lambda row: {LOSS_WEIGHTS: row[LOSS_WEIGHTS][kept]})
        return super().prepare_rows(rows, args, packing, prepared)


def packed(dataset: Any, args: Any) -> Any:
    """A data set with weights, packed and shuffled as TRL does."""
    columns = ["input_ids", "labels", LOSS_WEIGHTS]
    dataset = dataset.select_columns(columns)
    if not hasattr(dataset, "__len__"):  # in a stream, rows without weights have a null
        dataset = dataset.map(
            lambda row: {LOSS_WEIGHTS: row[LOSS_WEIGHTS] or [1.0] * len(row["input_ids"])},
            features=dataset.features,
        )
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, {})
    return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset


@dataclass(frozen=True)
class _Weighs:
    """A forward hook that multiplies the log-probabilities of each token by its weight."""

    weights: torch.Tensor
    own_mean: bool

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        if not isinstance(output, FusedCausalLMOutput):
            return None  # the logits for `compute_metrics`
        weights = of_targets(self.weights, output.log_probs)
        if self.own_mean:
            mask = output.label_mask
            weights = weights * _scale(mask.sum(), (weights * mask).sum())
        # A new output, because the evaluation keeps this one for its own sums.
        return type(output)(**{**output, "log_probs": output.log_probs * weights})


def of_targets(weights: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """Align the weights (rows, tokens) with `log_probs` (rows, targets). Each token but the first is a
    target; the virtual tokens of prompt tuning, which come first, have no weights."""
    own = weights[:, 1:].to(log_probs.device)
    return torch.nn.functional.pad(own, (log_probs.shape[1] - own.shape[1], 0))


def _count_and_weight(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    trained = batch["labels"][:, 1:] != IGNORED
    weights = batch[LOSS_WEIGHTS][:, 1:]
    return torch.stack([trained.sum().float(), (weights * trained).sum()])


def _scale(count: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The factor that gives the weights a mean of 1."""
    return count / weight.clamp(min=torch.finfo(torch.float32).tiny)
