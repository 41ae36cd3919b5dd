"""Several processes: the rows that fill up the last batch of an epoch are not learnt a second time.

All processes have to come to each step, so accelerate fills up the last batch with rows of the epoch's
beginning. Their labels are masked here before the tokens of the step are counted, which makes the step that
of one process with a batch of all their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch

from fmstune.data.tokens.table import IGNORED
from fmstune.text import counted


class EachRowOnce:
    """For a class beside TRL's SFTTrainer, before it."""

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """The Trainer's, of batches in which each row counts once."""
        trainer: Any = super()
        return trainer.get_batch_samples(self._once(epoch_iterator), num_batches, device)

    def _once(self, batches: Iterator[Any]) -> Iterator[Any]:
        this: Any = self
        for batch in batches:
            state = this.accelerator.gradient_state
            # -1 where the length is not known, 0 where the last batch is full.
            if this.args.world_size > 1 and state.end_of_dataloader and state.remainder > 0:
                size = this.args.train_batch_size
                own = new_rows(state.remainder, this.args.process_index, size)
                if own < size and not this.args.packing:  # packed rows follow each other unseparated
                    mask_rows_from(batch, own)
            yield batch


def new_rows(rest: int, process: int, size: int) -> int:
    """How many rows of a process's last batch are new, of `rest` rows that are left for all processes.

    accelerate deals out `size` rows to each process in turn (`BatchSamplerShard`), so those that fill up are
    the last ones.
    """
    return min(max(rest - process * size, 0), size)


def mask_rows_from(batch: MutableMapping[str, Any], first: int) -> None:
    """Leave the rows from the number `first` on out of the loss: of a padded batch, or of one in which the
    rows follow each other and positions begin again with each of them."""
    labels = batch["labels"].clone()
    if labels.shape[0] > 1 or "attention_mask" in batch:
        labels[first:] = IGNORED
    else:
        number = (batch["position_ids"] == 0).cumsum(-1) - 1
        labels = torch.where(number < first, labels, IGNORED)
    batch["labels"] = labels


def trained_twice(args: Any, rows: Any) -> str | None:
    """That rows are trained twice, where they cannot be masked: pairs, whose figures TRL gathers row
    by row, and packed rows. `None` where none are."""
    if args.world_size < 2 or args.dataloader_drop_last or not hasattr(rows, "__len__"):
        return None
    each = args.train_batch_size * args.world_size
    rest = len(rows) % each
    if not rest or 0 < args.max_steps * args.gradient_accumulation_steps * each <= len(rows):
        return None
    return (
        f"of each epoch, {counted(each - rest, 'row is', 'rows are')} trained twice: {args.world_size} "
        "processes fill up its last batch with rows of its beginning. training.dataloader_drop_last = true "
        f"leaves out the last {counted(rest, 'row')} instead"
    )
