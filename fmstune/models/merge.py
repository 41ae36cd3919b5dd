"""Merging an adapter into the model that it was made for: a plain model, for whatever reads those."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError, ModelError, RunError
from fmstune.models.locate import Place


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written: the adapter in words, the base model, the data type and the size in bytes."""

    adapter: str
    base: str
    dtype: str
    bytes: int


def check(place: Place, out: Path) -> None:
    """Raises `ModelError` or `ConfigError` when there is nothing to merge, or no place to write it to."""
    if not Path(place.path).exists():
        raise ModelError(
            f"{place.path}: there is no such directory; an adapter on the hub is to be fetched first."
        )
    if place.adapter is None:
        raise ModelError(f"{place.path} is a whole model, not an adapter: there is nothing to merge.")
    if place.adapter.kind == "PROMPT_TUNING":
        raise ModelError(
            f"the adapter in {place.path} is learnt words before each text (prompt tuning), which are no "
            "weights to merge; use it with its base model."
        )
    if out.is_symlink() and not out.exists():
        raise ConfigError(f"{out} is a link that leads nowhere; give a directory to write the model to.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a directory to write the model to.")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty, and nothing is overwritten; give another directory.")


def merge(place: Place, out: Path, *, dtype: str, base: str | None, trust_remote_code: bool) -> Merged:
    """Write the merged model, its tokenizer and chat template into `out`.

    `dtype` is that of the weights written, `auto` the one that the base model is saved in; `base` is where
    the base model is, if not where the adapter says. `out` holds the whole model or does not exist. Raises
    `ModelError`, and `RunError` when it cannot be written.
    """
    import torch

    from fmstune.models.adapters import describe
    from fmstune.models.end_tokens import saved_settings
    from fmstune.models.load import load_model, load_tokenizer

    check(place, out)
    config = ModelConfig(path=place.path, dtype="saved", trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(config, base=base)
    loaded = load_model(config, lora=True, seed=0, reward=place.scores, base=base, trainable=False)
    named = describe(loaded.model) or ""
    try:
        model = loaded.model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(f"the adapter in {place.path} cannot be merged: {error}") from error
    settings = None if place.scores else saved_settings(Path(place.path))
    if settings is not None:
        model.generation_config = settings
    if dtype != "auto":
        model = model.to(getattr(torch, dtype))
    with _whole(out) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        from fmstune.models.saving import share_weights  # it imports torch, which a refusal need not wait for

        share_weights(scratch)
    return Merged(
        named,
        str(loaded.identity["base"]),
        str(model.dtype).removeprefix("torch."),
        sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
    )


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A directory that becomes `out` when all has been written into it, and else is removed."""
    scratch = None
    out = Path(os.path.realpath(out))  # a link to a directory stays, and what it leads to is written
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        scratch.chmod(0o755)  # as any other directory; `mkdtemp` keeps its own to one user
        yield scratch
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
