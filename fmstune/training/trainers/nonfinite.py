"""Detect a non-finite loss, gradient or weight immediately, before it affects the weights.

The loss of each batch is checked before its backward pass, and the gradient before its update, so the
weights are still good when the run stops. On a GPU this adds no synchronization: TRL already reads its own
metrics of each batch from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole
from fmstune.data.tokens.lengths import sequences
from fmstune.errors import RunError
from fmstune.models.checkpoints import newest_checkpoint
from fmstune.text import counted
from fmstune.training.trainers.engine_updates import dropped, drops_updates, is_engine, is_finite_norm
from fmstune.training.trainers.finite_weights import (
    broken_anywhere,
    broken_weight,
    several_processes,
    trained_weights,
)
from fmstune.training.tuned_trainer import TunedTrainer

_MOST_IN_A_ROW = 10
COUNTER = "skipped_batches"
_SHOWN_ROWS = 4
_SHOWN_CHARACTERS = 60


class NonFiniteGuard:
    """How a run handles non-finite values.

    `on_nonfinite` is the setting of that name. `places` has the origin of each row of `rows`, the training
    data (`train.jsonl line 17`); it may be empty. `decode` turns token ids into text. `remedies` ends the
    message of a stop. `warn` receives the problems that do not stop the run.
    """

    def __init__(
        self,
        on_nonfinite: str,
        warn: Callable[[str], None],
        *,
        rows: Any = None,
        places: Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
        remedies: Callable[[], str] = lambda: "",
    ) -> None:
        self.skipped = 0
        self._on_nonfinite = on_nonfinite
        self._warn = warn
        self._rows = rows
        self._places = places
        self._decode = decode
        self._remedies = remedies
        self._in_a_row = 0
        self._warned = False
        self._began = False

    @property
    def stops(self) -> bool:
        """Whether the run stops at a non-finite value."""
        return self._on_nonfinite == "stop"

    def loss(self, loss: torch.Tensor, inputs: Any, model: torch.nn.Module, step: int) -> torch.Tensor:
        """The loss to compute gradients from: the given one, or a zero that has no effect.

        Raises `RunError` if the run must stop. All ranks reach the same result.
        """
        bad = ~torch.isfinite(loss.detach()).all()
        if not _any_rank(bad):
            self._began = True
            return loss
        what = f"the loss is {_name(loss) if bad else 'not finite'} at step {step}"
        described = _from_all_ranks(self._describe(inputs) if bad else "")
        found = f"{what} ({described})" if described else what
        if self._on_nonfinite == "continue":
            self._go_on(found)
            return loss
        self._refuse_broken_weights(model, what)
        if self._on_nonfinite == "stop":
            raise RunError(
                f"{found}; the weights are unchanged. {self._remedies()} If only these rows "
                'cause it, fix them, or set run.on_nonfinite = "skip".'
            )
        if drops_updates(model):
            self._skip(found, "; DeepSpeed drops the whole update")
            return dropped(loss)
        moves = "; if a whole update is skipped, DeepSpeed still applies momentum and weight decay"
        self._skip(found, moves if is_engine(model) else "")
        # Every trained weight gets a zero gradient, as ranks that wait for each other expect.
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return sum(
            ((parameter.reshape(-1)[:1] * 0).sum().to(loss) for parameter in trained), torch.zeros_like(loss)
        )

    def gradient(self, norm: Any, step: int, *, applied: bool | None = None) -> bool:
        """Whether to update the weights with gradients of this norm; call it before the update, except with
        DeepSpeed: then `applied` is whether it has updated them already.

        Raises `RunError` if the run must stop. The norm is that of all ranks together.
        """
        number = torch.as_tensor(norm)
        if bool(torch.isfinite(number).all()) and (applied is None or is_finite_norm(norm)):
            self._in_a_row = 0
            return True
        # DeepSpeed reports both as the same number.
        how = _name(number) if applied is None else "NaN or infinite"
        found = f"the gradient is {how} at step {step}, though the loss is finite"
        if self._on_nonfinite == "continue":
            self._go_on(found)
            return True
        if applied:
            raise RunError(
                f"{found}. DeepSpeed has already updated the weights with it, so they are broken, and are "
                f"not saved. {self._remedies()}".strip()
            )
        if self._on_nonfinite == "stop":
            raise RunError(f"{found}; the weights are unchanged. {self._remedies()}".strip())
        self._skip(found)
        return False

    def weights(self, model: torch.nn.Module, step: int) -> None:
        """Refuse to save a broken model; its checkpoint would replace a good one.

        Raises `RunError`, in all processes if the shard of one is broken.
        """
        self._refuse(broken_anywhere(model), step)

    def copied_weights(
        self, model: torch.nn.Module, step: int, copies: Mapping[int, torch.Tensor]
    ) -> Callable[[], None]:
        """Like `weights`, for a checkpoint that is written from `copies` (by the addresses of the weights):
        check the weights that have none, and return the check of the copies, for the thread that writes
        them. It holds the copies until it is called."""
        left: list[tuple[str, torch.Tensor]] = []
        for name, weight in trained_weights(model):
            copy = copies.get(weight.data_ptr())
            if copy is not None and (copy.shape, copy.dtype) == (weight.shape, weight.dtype):
                left.append((name, copy))
            else:
                self._refuse(broken_weight([(name, weight)]), step)

        def check() -> None:
            try:
                self._refuse(broken_weight(left), step)
            finally:
                left.clear()

        return check

    def _refuse(self, name: str | None, step: int) -> None:
        if name is None:
            return
        found = f"the weights are no longer finite after step {step} ({name}, for example)"
        if self._on_nonfinite == "continue":
            self._go_on(found)
            return
        raise RunError(f"{found}, and are not saved. {self._remedies()}".strip())

    def _refuse_broken_weights(self, model: torch.nn.Module, what: str) -> None:
        name = broken_anywhere(model)
        if not self._began:
            if name is None and not several_processes():  # of a divided model, that would be a collective
                name = broken_weight(model.named_parameters())
            if name is not None:
                raise RunError(
                    f"{what}, because the model was loaded with weights that are not finite ({name}, for "
                    "example): they are damaged, or from a run that diverged; use other weights."
                )
        if name is not None:
            raise RunError(
                f"{what}, because the weights are no longer finite ({name}, for example). "
                f"{self._remedies()}".strip()
            )

    def _skip(self, found: str, how: str = "") -> None:
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= _MOST_IN_A_ROW:
            raise RunError(
                f"{found}, as in the {self._in_a_row - 1} batches before it. {self._remedies()}".strip()
            )
        if self.skipped == 1:
            self._warn(f"{found}; this batch and others like it are skipped, and counted as {COUNTER}{how}.")

    def _go_on(self, found: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f'{found}; the run continues, as run.on_nonfinite = "continue" says.')

    def _describe(self, inputs: Any) -> str:
        """Describe the rows of a batch by their origin, or else by how the first one starts."""
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is None:
            return ""
        rows = [_without_padding(row, None if mask is None else mask[i]) for i, row in enumerate(ids)]
        if len(rows) == 1 and inputs.get("position_ids") is not None:
            rows = _split(rows[0], inputs["position_ids"].reshape(-1).tolist())
        found = self._find(rows)
        if found:
            more = f" and {len(found) - _SHOWN_ROWS} more" if len(found) > _SHOWN_ROWS else ""
            return ", ".join(found[:_SHOWN_ROWS]) + more
        if self._decode is None:
            return f"a batch of {counted(len(rows), 'row')}"
        begins = " ".join(self._decode(rows[0][:_SHOWN_CHARACTERS]).split())[:_SHOWN_CHARACTERS]
        first = "of which the first" if len(rows) > 1 else "which"
        return f"a batch of {counted(len(rows), 'row')}, {first} begins {begins!r}"

    def _find(self, rows: list[list[int]]) -> list[str]:
        """The locations of the rows, found by their tokens: a batch does not record its origin."""
        if not self._places or self._rows is None:
            return []
        wanted = {tuple(row) for row in rows}
        longest = max(map(len, wanted), default=0)
        known: dict[tuple[int, ...], str] = {}
        for place, row in zip(self._places, self._rows, strict=False):
            for tokens in sequences(row):
                # The batch has only the start of answers that are too long.
                cut = tuple(tokens[:longest])
                if cut in wanted:
                    known.setdefault(cut, place)
        return list(dict.fromkeys(known[tuple(row)] for row in rows if tuple(row) in known))


def guard(
    trainer: TunedTrainer,
    config: RunConfig,
    directory: Path,
    out: RunConsole,
    *,
    places: Sequence[str],
    decode: Callable[[Any], str],
) -> None:
    """Add a guard for `run.on_nonfinite` to the run's trainer. `places` has the origin of each training row;
    `decode` turns token ids into text."""
    trainer.guard = NonFiniteGuard(
        config.run.on_nonfinite,
        out.warn,
        rows=trainer.train_dataset,
        places=places,
        decode=decode,
        remedies=lambda: remedies(trainer.args, directory),
    )


def _any_rank(bad: torch.Tensor) -> bool:
    if not several_processes():
        return bool(bad)
    flag = bad.to(torch.int32)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


def _from_all_ranks(text: str) -> str:
    """Join the messages of all ranks, so that all raise the same error, including the rank that prints it."""
    if not several_processes():
        return text
    said: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(said, text)
    return "; ".join(dict.fromkeys(each for each in said if each))


def _name(value: torch.Tensor) -> str:
    number = value.detach().float().reshape(-1)[0].item()
    return (
        "NaN" if number != number else "infinite" if number in (float("inf"), -float("inf")) else "not finite"
    )


def _without_padding(ids: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
    kept: list[int] = (ids if mask is None else ids[mask.bool()]).tolist()
    return kept


def _split(ids: list[int], positions: list[int]) -> list[list[int]]:
    """Split a batch without padding into rows: each starts at position 0."""
    rows: list[list[int]] = []
    for token, position in zip(ids, positions, strict=True):
        if position == 0 or not rows:
            rows.append([])
        rows[-1].append(token)
    return rows


def remedies(args: Any, directory: Path) -> str:
    """The settings to try after a non-finite value, with the current values, for the end of a message."""
    tries = [f"a lower training.learning_rate (it is {args.learning_rate:g})"]
    if args.max_grad_norm <= 0:
        tries.append("training.max_grad_norm = 1")
    elif args.max_grad_norm > 1:
        tries.append(f"training.max_grad_norm = 1 (it is {args.max_grad_norm:g})")
    if args.fp16:
        tries.append("training.bf16 instead of fp16, whose numbers end at 65504")
    if not args.warmup_steps:
        tries.append("training.warmup_steps")
    kept = newest_checkpoint(directory)
    return f"Try {', or '.join(tries)}." + (f" {kept} is kept." if kept else "")
