"""How a checkpoint gets its name: it is written in a temporary folder, which is renamed once it is complete.

An existing one of the same name waits in the folder of unfinished ones until the new one has the name:
whenever a run is killed, one of the two is complete, and the next start finds it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from fmstune.layout import UNFINISHED
from fmstune.models.checkpoints import STATE, damage, is_checkpoint
from fmstune.system.files import flush_to_disk, rename_folder


def named(run: Path) -> Path:
    """The name of a new folder for writing a checkpoint of the run. No two writers share one: a thread left
    behind by another run of this process still writes to its own."""
    return run / UNFINISHED / f"writing-{secrets.token_hex(8)}"


def begin(run: Path) -> Path:
    """A new folder for writing a checkpoint of the run."""
    folder = named(run)
    folder.mkdir(parents=True)
    return folder


def flush(folder: Path) -> None:
    """Flush the files of a folder to disk, so that they survive a power failure."""
    for entry in (*folder.rglob("*"), folder):
        flush_to_disk(entry)


def rename_into_place(folder: Path, target: Path) -> None:
    """Give a complete checkpoint its name. Raises `FileExistsError` if something else has it."""
    if os.path.lexists(target):
        _require_folder(target)
        # A rename does not replace a directory, unless it is empty.
        waiting = folder.with_name(target.name)
        discard(waiting)
        _rename(target, waiting)
        try:
            _rename(folder, target)
        except BaseException:  # Ctrl-C may come right after the rename, too
            if not os.path.lexists(target):
                _rename(waiting, target)
            raise
        # Never leave it half-removed under a name that `restore_names` would find.
        _rename(waiting, folder)
        discard(folder)
    else:
        _rename(folder, target)
        _remove_empty(folder.parent)


def require_names(run: Path) -> None:
    """Raise `FileExistsError` if a file has the name of a checkpoint: no checkpoint could take its place."""
    for entry in sorted(run.glob("checkpoint-*")):
        if is_checkpoint(entry):
            _require_folder(entry)


def _require_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file with the name of a checkpoint: move or rename it.")


def discard(folder: Path) -> None:
    """Remove what was written of a checkpoint; of one elsewhere, the link to it."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(folder.parent)


def restore_names(run: Path) -> None:
    """Restore the name of each checkpoint that was waiting when a kill interrupted its replacement. Each
    rank may call this at once: the first one does it."""
    for waiting in (run / UNFINISHED).glob("checkpoint-*"):
        target = run / waiting.name
        if is_checkpoint(waiting) and not os.path.lexists(target) and damage(waiting) is None:
            with contextlib.suppress(FileNotFoundError):
                _rename(waiting, target)


def remove_leftovers(run: Path) -> None:
    """Remove what a killed run left, except what `restore_names` finds."""
    restore_names(run)
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def flush_name(target: Path) -> None:
    """Flush the name of a checkpoint to disk, before older ones are removed."""
    flush_to_disk(target.parent)


def _rename(folder: Path, target: Path) -> None:
    """Rename a checkpoint, or its files, its state last: a checkpoint without it is incomplete."""
    rename_folder(folder, target, last=STATE)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another checkpoint is in it
        folder.rmdir()
