"""orpo with TRL's `ORPOTrainer`, which is experimental.

It would tokenise rows itself, in another way. Here it is given rows and batches of dpo's trainer.
"""

from __future__ import annotations

import warnings
from typing import Any

import datasets
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from fmstune.data.tokens.table import IGNORED
from fmstune.training.methods.trained import Trained
from fmstune.training.trainers.preferences import PreferenceTuner
from fmstune.training.trl_compat import count_tokens
from fmstune.training.tuned_trainer import as_trainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is experimental, which the help of --method says
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class OrpoTuner(PreferenceTuner, ORPOTrainer):
    """TRL's, of tokenised rows."""

    fused_head = False
    more_columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self, *, args: Any, train_dataset: Any, eval_dataset: Any, processing_class: Any, **more: Any
    ) -> None:
        # It maps over its rows three times, to make tokens of texts. They come when it is built.
        none = datasets.Dataset.from_dict({})
        # Without a length it would warn that it takes 512 tokens of each text.
        length, args.max_length = args.max_length, args.max_length or 1
        # It would turn this off with a warning, for its own collator.
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

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, with the tokens counted that it has read, as its stable trainers do."""
        this, trainer = as_trainer(self), as_trainer(super())
        answer = trainer.compute_loss(model, inputs, return_outputs, num_items_in_batch)
        count_tokens(self, int(this.accelerator.gather(inputs["attention_mask"].sum()).sum()))
        return answer

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        """TRL's, of a batch of dpo's: its first half are the better answers."""
        labels = torch.where(batch["completion_mask"] == 1, batch["input_ids"], IGNORED)
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
        halves = {
            f"{name}_{key}": half
            for key, both in given.items()
            for name, half in zip(("chosen", "rejected"), both.chunk(2), strict=True)
        }
        return super().concatenated_forward(model, halves)


TRAINED = Trained(ORPOConfig, OrpoTuner)
