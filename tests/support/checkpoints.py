"""Checkpoints without a training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_checkpoint(folder: Path, step: int = 4) -> Path:
    """The files of a Trainer's checkpoint as the libraries write them, for a model of one tensor."""
    folder.mkdir(parents=True)
    save_file({"weight": torch.ones(40)}, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(4)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder
