"""Supervised fine-tuning as papers and PyTorch's documentation define it: losses of single rows without
padding, schedules, clipping, optimizers, LoRA. Nothing of the training of TRL, transformers or fmstune is
used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.support.preference_oracle import next_token_logs

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """A row's tokens, and the weight of each in the loss; 0 for one that is not learnt, as the first."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    def part(self, start: int, end: int) -> Row:
        """Some of its tokens. No token precedes the first of them."""
        weights = self.weights[start:end]
        return Row(self.ids[start:end], (0.0, *weights[1:]))

    @property
    def trained(self) -> int:
        """The number of learnt tokens."""
        return sum(weight != 0 for weight in self.weights)


@dataclass(frozen=True)
class Settings:
    """The numbers of a training, by the names of `[training]`."""

    learning_rate: float = 0.1
    optim: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    loss_type: str = "nll"
    label_smoothing_factor: float = 0.0
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: Mapping[str, Any] = field(default_factory=dict)
    warmup_steps: float = 0.0


@dataclass(frozen=True)
class Scores:
    """Of the learnt tokens of some rows: their weights, losses and entropies, and whether each is the most
    probable one."""

    weights: torch.Tensor
    losses: torch.Tensor
    entropies: torch.Tensor
    right: torch.Tensor

    def loss(self) -> torch.Tensor:
        return (self.weights * self.losses).sum() / self.weights.sum()

    def accuracy(self) -> float:
        return float(self.right.double().mean()) if len(self.right) else 0.0

    def entropy(self) -> float:
        return float(self.entropies.mean()) if len(self.right) else 0.0


def score(model: Any, rows: Iterable[Row], settings: Settings) -> Scores:
    """Compute the scores of rows, each alone."""
    found = []
    for row in rows:
        logs = next_token_logs(model, row.ids)
        weights = torch.tensor(row.weights[1:], dtype=torch.double)
        kept, targets = weights != 0, torch.tensor(row.ids[1:])
        logs, own = logs[kept], logs.gather(-1, targets[:, None])[kept, 0]
        losses = -own
        if settings.loss_type == "dft":  # Wu et al. 2025, equation 9
            losses = losses * own.detach().exp()
        elif smoothing := settings.label_smoothing_factor:  # Szegedy et al. 2016, section 7
            losses = (1 - smoothing) * losses - smoothing * logs.mean(-1)
        with torch.no_grad():
            entropies = -(logs.exp() * logs).sum(-1)
        found.append((weights[kept], losses, entropies, logs.argmax(-1) == targets[kept]))
    return Scores(*(torch.cat(each) for each in zip(*found, strict=True)))


def rate(settings: Settings, done: int, total: int) -> float:
    """The learning rate of the step after `done` of `total` steps."""
    given, kind = settings.lr_scheduler_kwargs, settings.lr_scheduler_type
    warmup = math.ceil(settings.warmup_steps * total) if settings.warmup_steps < 1 else settings.warmup_steps
    most = settings.learning_rate
    if kind == "constant":
        return most
    if done < warmup:
        return most * done / warmup
    if kind == "constant_with_warmup":
        return most
    if kind == "inverse_sqrt":
        scale = warmup or 10_000
        return most * math.sqrt(scale / (done + scale - warmup))
    if kind == "warmup_stable_decay":
        left = total - done
        decay = given["num_decay_steps"]
        return most if left > decay else most * (1 + math.cos(math.pi * (1 - left / decay))) / 2
    share = (done - warmup) / max(1, total - warmup)
    if kind == "linear":
        return most * (1 - share)
    if kind == "polynomial":
        return given["lr_end"] + (most - given["lr_end"]) * (1 - share) ** given["power"]
    if kind == "cosine_with_restarts":
        return most * (1 + math.cos(math.pi * (share * given["num_cycles"] % 1))) / 2
    least = given.get("min_lr_rate", 0.0)
    assert kind in ("cosine", "cosine_with_min_lr")
    return most * (least + (1 - least) * (1 + math.cos(math.pi * share)) / 2)


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or SGD with momentum and L2 regularisation. Weights of norms and
    biases do not decay."""

    def __init__(self, weights: Mapping[str, torch.Tensor], settings: Settings) -> None:
        self._weights, self._of = weights, settings
        self._first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self._second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, torch.Tensor], rate: float) -> None:
        """Update the weights."""
        self._steps += 1
        of, beta1, beta2 = self._of, self._of.adam_beta1, self._of.adam_beta2
        for name, weight in self._weights.items():
            decay = 0.0 if "norm" in name or "bias" in name else of.weight_decay
            gradient, first, second = gradients[name], self._first[name], self._second[name]
            if of.optim == "sgd":
                first.mul_(of.momentum).add_(gradient + decay * weight)
                weight -= rate * first
                continue
            first.mul_(beta1).add_((1 - beta1) * gradient)
            second.mul_(beta2).add_((1 - beta2) * gradient**2)
            mean = first / (1 - beta1**self._steps)
            size = (second / (1 - beta2**self._steps)).sqrt() + of.adam_epsilon
            weight -= rate * (mean / size + decay * weight)


@dataclass(frozen=True)
class Step:
    """What an update reports: its loss, gradient norm before clipping and learning rate; the accuracy and
    the entropy over its trained tokens, and their number; all its tokens."""

    loss: float
    grad_norm: float
    learning_rate: float
    accuracy: float
    entropy: float
    trained: int
    tokens: int


class Training:
    """A training of `weights` of a model, update by update."""

    def __init__(self, model: Any, weights: Mapping[str, torch.Tensor], settings: Settings) -> None:
        self.model, self.weights, self._of = model, weights, settings
        self._optimizer = Optimizer(weights, settings)
        self._done = 0

    def update(self, batches: Sequence[Sequence[Row]], total: int) -> Step:
        """Learn the batches of an update, of `total` in the training."""
        scores = [score(self.model, batch, self._of) for batch in batches]
        whole = Scores(*(torch.cat([getattr(each, name) for each in scores]) for name in _FIELDS))
        loss = whole.loss()
        found = torch.autograd.grad(loss, list(self.weights.values()))
        norm = float(torch.stack([each.norm() for each in found]).norm())
        most = self._of.max_grad_norm
        scale = min(1.0, most / norm) if most and norm else 1.0
        learning_rate = rate(self._of, self._done, total)
        gradients = {name: scale * each for name, each in zip(self.weights, found, strict=True)}
        self._optimizer.step(gradients, learning_rate)
        self._done += 1
        tokens = sum(len(row.ids) for batch in batches for row in batch)
        means = whole.accuracy(), whole.entropy(), len(whole.right)
        return Step(float(loss.detach()), norm, learning_rate, *means, tokens)

    @torch.no_grad()
    def evaluate(self, rows: Sequence[Row]) -> dict[str, float]:
        """The means over all learnt tokens of rows."""
        found = score(self.model, rows, self._of)
        return {
            "loss": float(found.loss()),
            "mean_token_accuracy": found.accuracy(),
            "entropy": found.entropy(),
        }

    def copy(self) -> Tensors:
        """The weights as they are now."""
        return {name: weight.detach().clone() for name, weight in self.weights.items()}


_FIELDS = ("weights", "losses", "entropies", "right")


def full(model: Any) -> Tensors:
    """All weights of a model, to be trained in double precision."""
    return dict(model.double().named_parameters())


def lora(model: Any, initial: Mapping[str, torch.Tensor], scale: float) -> Tensors:
    """Low-rank matrices beside all linear layers but the LM head (Hu et al. 2021): W x + scale · B A x, where
    B is zero at first. `initial` has A by the layer's name."""
    found: Tensors = {}
    for name, layer in model.double().requires_grad_(False).named_modules():
        if not isinstance(layer, torch.nn.Linear) or name == "lm_head":
            continue
        first = initial[name].double().clone().requires_grad_()
        second = torch.zeros(layer.out_features, len(first), dtype=torch.double, requires_grad=True)
        found |= {f"{name}.A": first, f"{name}.B": second}

        def add(module: Any, args: Any, output: Any, a: Any = first, b: Any = second) -> Any:
            return output + scale * (args[0] @ a.T @ b.T)

        layer.register_forward_hook(add)
    assert len(found) == 2 * len(initial)
    return found


def pieces(rows: Sequence[Row], most: int, strategy: str) -> list[Row]:
    """The documents of packed rows: truncated for `bfd`, divided for `bfd_split`, joined and divided for
    `wrapped`; each is learnt without the text before it."""
    if strategy == "bfd":
        found = [row.part(0, most) for row in rows]
    elif strategy == "bfd_split":
        found = [row.part(start, start + most) for row in rows for start in range(0, len(row.ids), most)]
    else:
        ids = tuple(token for row in rows for token in row.ids)
        weights = tuple(weight for row in rows for weight in row.weights)
        whole = Row(ids, weights)
        found = [whole.part(start, start + most) for start in range(0, len(ids), most)]
    return found


def packs(lengths: Sequence[int], most: int) -> int:
    """The number of rows that best-fit decreasing (Johnson 1973) needs for documents of these lengths."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [left for left in free if left >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(most - length)
    return len(free)
