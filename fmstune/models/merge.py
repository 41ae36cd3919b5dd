"""Merge an adapter into its base model: the result is a plain model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fmstune.access import reason
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError, ModelError, RunError
from fmstune.models.locate import Place


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written: the adapter's description, the base model, the data type and the size in bytes."""

    adapter: str
    base: str
    dtype: str
    bytes: int


def check(place: Place, out: Path) -> None:
    """Raise `ModelError` or `ConfigError` if there is nothing to merge, or `out` is unusable."""
    if not Path(place.path).exists():
        raise ModelError(f"{place.path}: there is no such directory. Download an adapter from the hub first.")
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
    above = next((each for each in out.parents if os.path.lexists(each)), None)
    if above is not None and not above.is_dir():
        kind = "a link that leads nowhere" if above.is_symlink() and not above.exists() else "a file"
        raise ConfigError(f"{out} cannot be written: {above} is {kind}.")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty, and nothing is overwritten; give another directory.")


def merge(place: Place, out: Path, *, dtype: str, base: str | None, trust_remote_code: bool) -> Merged:
    """Write the merged model, its tokenizer and chat template into `out`.

    `dtype` is the type of the written weights, `auto` that of the saved base model; `base` is the path of the
    base model, if not the one in the adapter. Afterwards, `out` is complete or does not exist. Raises
    `ModelError`, and `RunError` when it cannot be written.
    """
    import torch

    from fmstune.models.adapters import describe
    from fmstune.models.end_tokens import saved_settings
    from fmstune.models.load import load_model, load_tokenizer
    from fmstune.models.saving import share_weights

    check(place, out)
    with _written_at_once(out) as scratch:  # before the minutes that a large model takes
        config = ModelConfig(path=place.path, dtype="saved", trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(config, base=base)
        loaded = load_model(
            config, lora=True, seed=0, reward=place.is_reward_model, base=base, trainable=False
        )
        named = describe(loaded.model) or ""
        try:
            model = loaded.model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ModelError(f"the adapter in {place.path} cannot be merged: {error}") from error
        settings = None if place.is_reward_model else saved_settings(Path(place.path))
        if settings is not None:
            model.generation_config = settings
        if dtype != "auto":
            model = model.to(getattr(torch, dtype))
        with _write_errors(out):
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            share_weights(scratch)
    return Merged(
        named,
        str(loaded.identity["base"]),
        str(model.dtype).removeprefix("torch."),
        sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
    )


@contextmanager
def _written_at_once(out: Path) -> Iterator[Path]:
    """A directory whose files become those of `out` when all have been written, and are removed otherwise.

    An existing `out` stays the same directory: it may be a link, a mount, or a shell's working directory.
    """
    there = out.exists()
    made = [] if there else [each for each in reversed(out.parents) if not each.exists()]
    scratch = None
    try:
        with _write_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            parent = out if there else out.parent
            scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=parent))
            scratch.chmod(0o755)  # like any other directory; `mkdtemp` creates private ones
        yield scratch
        with _write_errors(out):
            if there:
                for file in scratch.iterdir():
                    file.rename(out / file.name)
            else:
                scratch.rename(out)
        made = []
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for directory in reversed(made):
            with suppress(OSError):  # others may have added files
                directory.rmdir()


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{out} cannot be written: {reason(error, out)}.") from error
