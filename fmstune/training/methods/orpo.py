"""orpo with TRL's `ORPOTrainer`, which is experimental.

It would tokenise rows itself, differently. Here it receives rows and batches of the dpo trainer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import datasets
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from fmstune.data.tokens.table import IGNORED
from fmstune.training.methods.trained import Trained
from fmstune.training.trainers.each_row_once import mean_over_all_tokens
from fmstune.training.trainers.preferences import PreferenceTuner
from fmstune.training.trl_compat.figures import count_tokens
from fmstune.training.tuned_trainer import as_trainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is experimental; the help of --method mentions it
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class _OfTokens(ORPOTrainer):
    """TRL's trainer on dpo batches, with the loss and metrics of one process also when there are several."""

    accelerator: Any
    token_mean: tuple[torch.Tensor, torch.Tensor] | None
    mean_over_update: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor | None]
    _missing_nll: torch.Tensor | int = 0
    """What the loss of the likelihood over the whole update is above that of the batch."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, with the likelihood of the whole update, and a count of its tokens, as in TRL's stable
        trainers."""
        answer = as_trainer(super()).compute_loss(model, inputs, return_outputs, num_items_in_batch)
        count_tokens(self, int(self.accelerator.gather(inputs["attention_mask"].sum()).sum()))
        more = self._missing_nll
        return (answer[0] + more, answer[1]) if return_outputs else answer + more

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """TRL's, with the logits and tokens that the dpo trainer passes to `compute_metrics`: its own are
        two means over a batch including padding."""
        outputs: list[Any] = []
        hook = model.register_forward_hook(lambda module, given, output: outputs.append(output))
        try:
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            hook.remove()
        if not prediction_loss_only:
            logits, labels = outputs[-1].logits, inputs["input_ids"]
        return loss, logits, labels

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        """TRL's, for a dpo batch: its first half are the better answers."""
        labels = torch.where(batch["completion_mask"] == 1, batch["input_ids"], IGNORED)
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
        halves = {
            f"{name}_{key}": half
            for key, both in given.items()
            for name, half in zip(("chosen", "rejected"), both.chunk(2), strict=True)
        }
        answer = list(super().concatenated_forward(model, halves))
        masks = [halves[f"{name}_attention_mask"] for name in ("chosen", "rejected")]
        # TRL logs the mean of these, which would include padding.
        answer[2:4] = [
            mean_over_all_tokens(self.accelerator, *_mean(logits.detach().mean(-1), mask[:, 1:]), len(mask))
            for logits, mask in zip(answer[2:4], masks, strict=True)
        ]
        own, tokens, rows = answer[4], masks[0][:, 1:].sum(), len(masks[0])
        self.token_mean = own.detach(), tokens
        answer[4] = mean_over_all_tokens(self.accelerator, own, tokens, rows)
        of_update = self.mean_over_update(own, tokens, rows)
        # TRL logs the mean of this batch, and learns it.
        self._missing_nll = 0 if of_update is None else of_update - answer[4]
        return tuple(answer)


def _mean(values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the values that are not masked, and their number."""
    count = mask.sum()
    return (values * mask).sum() / count, count


class OrpoTuner(PreferenceTuner, _OfTokens):
    """TRL's trainer, for tokenised rows."""

    fused_head = False
    counted_mask = "attention_mask"
    more_columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self, *, args: Any, train_dataset: Any, eval_dataset: Any, processing_class: Any, **more: Any
    ) -> None:
        model = more["model"]
        if processing_class.pad_token is None:  # as in TRL's other trainers
            processing_class.pad_token = processing_class.eos_token
            model.config.get_text_config().pad_token_id = processing_class.pad_token_id
        if not isinstance(train_dataset, datasets.Dataset):
            # As TRL's others: the batches of a stream are of different lengths.
            args.accelerator_config.dispatch_batches = False
        # It maps over its rows three times to tokenise texts. The tokenised rows are set after it is built.
        none = datasets.Dataset.from_dict({})
        # Without a length it would warn that it uses 512 tokens of each text.
        length, args.max_length = args.max_length, args.max_length or 1
        # It would disable this with a warning, for its own collator.
        removes, args.remove_unused_columns = args.remove_unused_columns, False
        super().__init__(
            args=args,
            train_dataset=none,
            eval_dataset=None if eval_dataset is None else none,
            processing_class=processing_class,
            **more,
        )
        args.max_length, args.remove_unused_columns = length, removes
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.data_collator = DataCollatorForPreference(processing_class.pad_token_id, length)

    def averaged_tokens(self, batch: Any) -> torch.Tensor:
        """Those whose likelihood it learns: the whole better text."""
        mask: torch.Tensor = batch["attention_mask"].chunk(2)[0][:, 1:]
        return mask.sum()


TRAINED = Trained(ORPOConfig, OrpoTuner)
