"""Records the batches that a run feeds to its model, as rows of their own."""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Fed = tuple[tuple[int, ...], tuple[int, ...]]
"""The tokens of a row, and its labels."""


@dataclass
class Feeding(TrainerCallback):
    """Records the rows of each batch that is learnt, and the weights before the first; with `stop_at`,
    interrupts the run after that step."""

    stop_at: int | None = None

    def __post_init__(self) -> None:
        self.batches: list[list[Fed]] = []
        self.initial: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        self.initial = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self._hook = model.register_forward_pre_hook(self._feed, with_kwargs=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._hook.remove()

    def _feed(self, model: Any, args: Any, batch: dict[str, Any]) -> None:
        if model.training and batch.get("labels") is not None:  # else a second pass of the same batch
            self.batches.append(rows_of(batch))


def rows_of(batch: dict[str, Any]) -> list[Fed]:
    """The rows of a batch, whether it is padded or their tokens follow one another."""
    found: list[Fed] = []
    for number, ids in enumerate(batch["input_ids"]):
        labels = batch["labels"][number]
        if (mask := batch.get("attention_mask")) is not None:
            bounds = [0, int(mask[number].sum())]
            labels = labels.masked_fill(
                torch.arange(len(labels)) == 0, -100
            )  # of the first token: it is not used
        else:
            begins = (batch["position_ids"][number] == 0).nonzero().flatten().tolist()
            bounds = [*begins, len(ids)]
        for start, end in itertools.pairwise(bounds):
            found.append((tuple(ids[start:end].tolist()), tuple(labels[start:end].tolist())))
    return found
