"""Log-probabilities of targets, and the statistics that TRL logs, in one pass over the logits.

torch's functions allocate a tensor as large as the logits for each of softmax, log-softmax, entropy and
gradient; with today's vocabularies these are the largest tensors of a step. Here the logits are turned into
their softmax in place, a few rows at a time to stay in the CPU cache, and the softmax into the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_BYTES_AT_ONCE = 4 << 20


@dataclass(frozen=True, slots=True)
class Scores:
    """For each row: the log-probability of its target, the entropy, the mean logit, and whether the target is
    the most likely token. Only the first has a gradient."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor


def scores(logits: torch.Tensor, targets: torch.Tensor) -> Scores:
    """Score `logits` (rows, vocabulary) in float32, overwriting them."""
    return Scores(*_Scores.apply(logits, targets))


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `scores`."""
        held, (rows, vocabulary) = logits.detach(), logits.shape
        at_once = max(1, _BYTES_AT_ONCE // (4 * max(1, vocabulary)))
        log_probs, entropy, means, sums = (held.new_empty(rows) for _ in range(4))
        top = targets.new_empty(rows)
        for begin in range(0, rows, at_once):
            part = slice(begin, begin + at_once)
            block, wanted = held[part], targets[part, None]
            most, top[part] = block.max(-1)
            means[part] = block.mean(-1)
            block.sub_(most[:, None])
            target = block.gather(-1, wanted)[:, 0]
            powers = block.exp()
            total = powers.sum(-1)
            logarithm = total.log()
            log_probs[part] = target - logarithm
            entropy[part] = logarithm - block.mul_(powers).sum(-1) / total
            block.copy_(powers)
            sums[part] = total
        # Saved rather than only stored on `ctx`, so that hooks that measure saved tensors see the largest.
        ctx.save_for_backward(targets, sums, held)
        ctx.made = False
        correct = top == targets
        ctx.mark_non_differentiable(entropy, means, correct)
        return log_probs, entropy, means, correct

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Computed in place, so it can run only once."""
        if ctx.made:
            raise RuntimeError("the backward pass of the loss was made already: its logits are overwritten")
        (targets, sums, made), given = ctx.saved_tensors, gradients[0]
        ctx.made = True
        made.mul_((-given / sums)[:, None])
        made.scatter_add_(-1, targets[:, None], given[:, None])
        return made, None
