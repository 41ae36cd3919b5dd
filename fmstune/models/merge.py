"""Merge an adapter into its base model: the result is a plain model."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fmstune.access import reason
from fmstune.config.schema.tables import ModelConfig
from fmstune.errors import ConfigError, ModelError, RunError
from fmstune.models.locate import Place
from fmstune.system.disk import shortage
from fmstune.system.files import rename_folder
from fmstune.system.locks import acquire, holder

_LOCK = ".merging"
"""Held in a directory while a model is written to it."""
_BEFORE_EACH_TEXT = {
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning",
    "CPT": "context-aware prompt tuning",
}
"""Kinds of adapters that change no weights, with their names."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written: the adapter's description, the base model, the data type, the size in bytes, and
    messages about the files that were read."""

    adapter: str
    base: str
    dtype: str
    bytes: int
    notes: tuple[str, ...] = ()


def check(place: Place, out: Path) -> None:
    """Raise `ModelError` or `ConfigError` if there is nothing to merge, or `out` is unusable."""
    if not Path(place.path).exists():
        raise ModelError(f"{place.path}: there is no such directory. Download an adapter from the hub first.")
    if place.adapter is None:
        raise ModelError(f"{place.path} is a whole model, not an adapter: there is nothing to merge.")
    if place.adapter.kind in _BEFORE_EACH_TEXT:
        raise ModelError(
            f"the adapter in {place.path} is learnt words before each text "
            f"({_BEFORE_EACH_TEXT[place.adapter.kind]}), which are no weights to merge; use it with its base "
            "model."
        )
    if out.is_symlink() and not out.exists():
        raise ConfigError(f"{out} is a link that leads nowhere; give a directory to write the model to.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a directory to write the model to.")
    above = next((each for each in out.parents if os.path.lexists(each)), None)
    if above is not None and not above.is_dir():
        kind = "a link that leads nowhere" if above.is_symlink() and not above.exists() else "a file"
        raise ConfigError(f"{out} cannot be written: {above} is {kind}.")
    if out.exists() and set(out.iterdir()) - set(_leftovers(out, out)):
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
    from fmstune.models.merged import merged
    from fmstune.models.saving import share_weights
    from fmstune.models.weights_used import record_untied

    check(place, out)
    with _written_at_once(out) as scratch:  # before the minutes that a large model takes
        # Sums that are to keep more digits than the files have are computed with them.
        held = "float32" if dtype in ("float32", "float16") else "saved"
        config = ModelConfig(path=place.path, dtype=held, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(config, base=base)
        loaded = load_model(
            config, lora=True, seed=0, reward=place.is_reward_model, base=base, trainable=False
        )
        named = describe(loaded.model) or ""
        model = merged(loaded.model, place)
        record_untied(model)
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
        loaded.notes,
    )


@contextmanager
def _written_at_once(out: Path) -> Iterator[Path]:
    """A directory whose files become those of `out` when all have been written, and are removed otherwise.

    An existing `out` stays the same directory: it may be a link, a mount, or a shell's working directory.
    """
    there = out.exists()
    made = [] if there else [each for each in reversed(out.parents) if not each.exists()]
    scratch = lock = None
    try:
        with _write_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            parent = out if there else out.parent
            _remove_leftovers(parent, out)
            scratch = parent / f"{_prefix(out)}{secrets.token_hex(8)}"
            scratch.mkdir()
            lock = acquire(scratch / _LOCK)
        yield scratch
        with _write_errors(out):
            if there:
                for file in sorted(scratch.iterdir(), key=_names_a_model):
                    if file.name != _LOCK:
                        file.rename(out / file.name)
            else:
                rename_folder(scratch, out, last="config.json")
                (out / _LOCK).unlink()
        made = []
    finally:
        if lock is not None:
            lock.release()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for directory in reversed(made):
            with suppress(OSError):  # others may have added files
                directory.rmdir()


def _prefix(out: Path) -> str:
    return f".{out.name}-"


def _names_a_model(file: Path) -> bool:
    """Whether a file is the one without which a directory holds no model: it comes last, so that after a
    kill no directory looks like a complete one."""
    return file.name == "config.json"


def _leftovers(parent: Path, out: Path) -> list[Path]:
    """The directories in `parent` of merges into `out` that were killed."""
    found = [each for each in parent.glob(f"{glob.escape(_prefix(out))}*") if (each / _LOCK).exists()]
    return [each for each in found if holder(each / _LOCK) is None]


def _remove_leftovers(parent: Path, out: Path) -> None:
    for each in _leftovers(parent, out):
        shutil.rmtree(each, ignore_errors=True)


@contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{out} cannot be written: {reason(error, out)}.") from error
    except Exception as error:  # safetensors has errors of its own for a full disk
        if (short := shortage(error, out)) is None:
            raise
        remedy = "give another directory" if short.of_one_file else short.remedy
        raise RunError(f"{out} cannot be written: {short.what}; {remedy}.") from error
