"""How a checkpoint gets its name: it is written in a folder of its own, and is renamed when it is whole.

One that is there already under this name waits in the folder of unfinished ones until the new one has the
name: whenever a run is killed, one of the two is whole, and the next start finds it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from fmstune.layout import UNFINISHED
from fmstune.models.checkpoints import damage, is_checkpoint


def begin(run: Path) -> Path:
    """A new folder to write a checkpoint of the run in. No two writings share one: a thread that was left
    behind by another run of this process still writes into its own."""
    folder = run / UNFINISHED / f"writing-{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    return folder


def settle(folder: Path) -> None:
    """Have the files of a folder be on the disk, also after a power failure."""
    for entry in (*folder.rglob("*"), folder):
        _sync(entry)


def take_place(folder: Path, target: Path) -> None:
    """Give a whole checkpoint its name."""
    if os.path.lexists(target):
        # A directory is not replaced by a rename, unless it is empty.
        waiting = folder.with_name(target.name)
        shutil.rmtree(waiting, ignore_errors=True)
        target.rename(waiting)
        try:
            folder.rename(target)
        except BaseException:  # Ctrl-C may come right after the rename, too
            if not os.path.lexists(target):
                waiting.rename(target)
            raise
        # It is not left half-removed under a name by which `put_back` would find it.
        waiting.rename(folder)
        discard(folder)
    else:
        folder.rename(target)
        _remove_empty(folder.parent)


def discard(folder: Path) -> None:
    """Remove what was written of a checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(folder.parent)


def put_back(run: Path) -> None:
    """Give each checkpoint its name again that waited for one which a kill kept from its place. Each rank may
    do that at once: the first one does it."""
    for waiting in (run / UNFINISHED).glob("checkpoint-*"):
        target = run / waiting.name
        if is_checkpoint(waiting) and not os.path.lexists(target) and damage(waiting) is None:
            with contextlib.suppress(FileNotFoundError):
                waiting.rename(target)


def clear(run: Path) -> None:
    """Remove what a run that was killed has left, but for what `put_back` finds."""
    put_back(run)
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def settle_name(target: Path) -> None:
    """Have the name of a checkpoint be on the disk, before older ones are removed."""
    _sync(target.parent)


def _sync(path: Path) -> None:
    is_folder = path.is_dir()
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:
        if not is_folder:  # not every file system can do that for a folder
            raise
    finally:
        os.close(opened)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else's is in it
        folder.rmdir()
