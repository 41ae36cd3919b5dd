"""Whether the files of a checkpoint are complete, from their headers and sizes: reads no weights, needs no
torch.

A kill, a full disk or an interrupted copy leaves files that exist but are too short.
"""

from __future__ import annotations

import functools
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fmstune.access import denied

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
_WEIGHTS = (
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model*.bin",
    "pytorch_model_fsdp*",
    "global_step*",
)
"""Files, and the directories of FSDP and DeepSpeed."""


def newest_checkpoint(path: Path) -> Path | None:
    """The newest checkpoint that a run can resume from; half-written ones are skipped."""
    return _newest(path, obstacle)


def newest_weights(path: Path) -> Path | None:
    """The newest checkpoint with complete weights, with or without what a run needs to resume."""
    return _newest(path, damage)


def _newest(path: Path, why_not: Callable[[Path], str | None]) -> Path | None:
    while True:
        found = checkpoints(path)
        newest = next((entry for entry in found if why_not(entry) is None), None)
        # A run that is going has removed an old one only after a newer one had its name.
        if newest is not None or found == checkpoints(path):
            return newest


def checkpoints(path: Path) -> list[Path]:
    """All checkpoints of a run, newest first, including half-written ones."""
    found = [entry for entry in path.glob("checkpoint-*") if is_checkpoint(entry)]
    return sorted(found, key=step_of, reverse=True)


def is_checkpoint(path: Path) -> bool:
    """Whether the name is that of a checkpoint."""
    return _CHECKPOINT.fullmatch(path.name) is not None


def step_of(checkpoint: Path | None) -> int:
    """The optimizer step of a checkpoint, by its name; 0 for none."""
    if checkpoint is None:
        return 0
    match = _CHECKPOINT.fullmatch(checkpoint.resolve().name)
    return int(match.group(1)) if match else 0


def _unless_removed(why_not: Callable[[Path], str | None]) -> Callable[[Path], str | None]:
    """Let a checkpoint be removed while it is looked at: a run that is going keeps `save_total_limit`."""

    @functools.wraps(why_not)
    def found(checkpoint: Path) -> str | None:
        try:
            return why_not(checkpoint)
        except FileNotFoundError:
            return "it was removed meanwhile"

    return found


@_unless_removed
def damage(checkpoint: Path) -> str | None:
    """What keeps the weights of a checkpoint from being read; `None` when they are complete.

    The Trainer writes its state last, so without it nothing is known about the rest.
    """
    if closed := _closed(checkpoint):
        return closed
    if not _has_state(checkpoint):
        return "it was not completely written"
    if not any(True for pattern in _WEIGHTS for _ in checkpoint.glob(pattern)):
        return "it contains no weights"
    damaged = next(_damaged(checkpoint, _WEIGHTS[:3]), None)
    return f"its {damaged} is damaged or incomplete" if damaged else None


def is_half_saved(run: Path, checkpoint: Path) -> bool:
    """Whether a run with this checkpoint was killed while it saved its model at the end."""
    weights = any(True for pattern in _WEIGHTS[:3] for _ in run.glob(pattern))
    texts = (each.name for pattern in ("tokenizer*", "chat_template*") for each in checkpoint.glob(pattern))
    return (
        not weights
        or any(not (run / name).exists() for name in texts)
        or next(_damaged(run, _WEIGHTS[:3]), None) is not None
    )


@_unless_removed
def obstacle(checkpoint: Path) -> str | None:
    """What keeps a run from continuing from a checkpoint as if it had never stopped; `None` for nothing.

    Without the optimizer's state transformers would silently start with a new optimizer and a learning rate
    of 0, and without a random state with other random numbers.
    """
    if (found := damage(checkpoint)) is not None:
        return found
    for name in ("optimizer", "rng_state"):
        if not any(checkpoint.glob(f"{name}*")) and not any(checkpoint.glob("global_step*")):
            return f"it contains no state of the {'optimizer' if name == 'optimizer' else 'random numbers'}"
    if (checkpoint / "optimizer.pt").exists() and not (checkpoint / "scheduler.pt").exists():
        return "it contains no state of the learning rate schedule"
    damaged = next(_damaged(checkpoint, ("*.pt", "*.pth", "optimizer*.bin")), None)
    return f"its {damaged} is damaged or incomplete" if damaged else None


def _closed(checkpoint: Path) -> str | None:
    """What keeps this user from reading a checkpoint: its files would seem incomplete, or not to exist."""
    if not os.path.isdir(checkpoint):  # noqa: PTH112  (`Path.is_dir` raises for a closed one)
        return None
    if not os.access(checkpoint, os.R_OK | os.X_OK):
        return f"it cannot be read: {denied(checkpoint)}"
    found = (each for each in checkpoint.iterdir() if each.exists() and not os.access(each, os.R_OK))
    closed = next(found, None)
    return f"its {closed.name} cannot be read: {denied(closed)}" if closed else None


def _has_state(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        return isinstance(state.get("global_step"), int)
    except (OSError, ValueError, AttributeError):
        return False


def _damaged(checkpoint: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        for file in sorted(checkpoint.glob(pattern)):
            whole = _is_whole_safetensors(file) if file.suffix == ".safetensors" else zipfile.is_zipfile(file)
            if not whole:
                yield file.name
    for index in checkpoint.glob("*.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            yield index.name
        else:
            yield from sorted(name for name in named if not (checkpoint / name).is_file())


def _is_whole_safetensors(file: Path) -> bool:
    """Eight bytes with the length of a JSON header, the header, and as many bytes as its offsets require: the
    format of https://huggingface.co/docs/safetensors."""
    try:
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            size = file.stat().st_size
            if length > size:
                return False
            header = json.loads(opened.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(8 + length + max(ends, default=0) == size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
        return False
