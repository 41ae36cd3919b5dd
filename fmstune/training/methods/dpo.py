"""dpo with TRL's `DPOTrainer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from fmstune.data.prepare import PreparedData
from fmstune.training.methods.trained import Trained
from fmstune.training.trainers.each_row_once import mean_over_all_tokens
from fmstune.training.trainers.preferences import PreferenceTuner


class _OfTokens(DPOTrainer):
    """TRL's trainer, with the loss "sft", a mean over the tokens of a batch, as that over the tokens of the
    whole update."""

    accelerator: Any
    token_mean: tuple[torch.Tensor, torch.Tensor] | None
    mean_over_update: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor | None]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's."""
        if "sft" not in self.loss_types:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs: list[Any] = []
        hook = model.register_forward_hook(lambda module, given, output: outputs.append(output))
        try:
            answer = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            hook.remove()
        mask = _chosen(inputs).bool()
        own = -outputs[0].log_probs[:, -mask.size(1) :].chunk(2)[0][mask].mean()
        of_all = self.mean_over_update(own, mask.sum(), len(mask))
        if of_all is None:
            of_all = mean_over_all_tokens(self.accelerator, own, mask.sum(), len(mask))
        weights = zip(self.loss_types, self.loss_weights, strict=True)
        weight = sum(weight for name, weight in weights if name == "sft")
        self.token_mean = own.detach() * weight, mask.sum()
        more = (of_all - own) * weight
        return (answer[0] + more, answer[1]) if return_outputs else answer + more


def _chosen(batch: Any) -> torch.Tensor:
    """The mask of the predicted tokens of the better answers."""
    mask: torch.Tensor = batch["completion_mask"][..., 1:].chunk(2)[0]
    return mask


class DpoTuner(PreferenceTuner, _OfTokens):
    """TRL's."""

    def averaged_tokens(self, batch: Any) -> torch.Tensor | None:
        """Those of the loss "sft"."""
        return _chosen(batch).sum() if "sft" in self.loss_types else None


_SORTED = ("aot", "aot_unpaired")


def _of_processes(data: PreparedData, args: Any) -> Iterator[str]:
    """Report a loss that several processes compute otherwise than one."""
    losses = [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type
    for name in (each for each in losses if each in _SORTED and args.world_size > 1):
        yield (
            f"the loss {name} sorts the rows of each process on its own: it differs from that of one process "
            "with all of them"
        )


TRAINED = Trained(DPOConfig, DpoTuner, _of_processes)
