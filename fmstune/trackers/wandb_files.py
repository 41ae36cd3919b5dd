"""Where W&B's SDK puts offline runs, and whose they are. What is said of it was seen with wandb 0.31.0."""

from __future__ import annotations

import glob
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fmstune.trackers.continued import is_of_another, mark
from fmstune.trackers.records import RunStart
from fmstune.trackers.wandb_account import WandbUnusable

if TYPE_CHECKING:
    import wandb

# Files of ours in an offline run's folder: the first from `open` to the end of `close`, the second for good.
_OPEN, _OWNER = "fmstune-open", "fmstune-run.json"


class OfflineRun:
    """The file of an offline run: W&B's process writes to it for ever, whatever becomes of its name."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._file: tuple[int, int] | None = None
        self.is_there()

    def is_there(self) -> bool:
        """Whether the folder still has the file that it had in the beginning."""
        files = [path.stat() for path in self._place.glob("*.wandb")]
        found = next(((file.st_dev, file.st_ino) for file in files), None)
        self._file = self._file or found
        return found is not None and found == self._file


def begin_offline(run: wandb.Run, start: RunStart, folder: Path) -> OfflineRun:
    """Mark the folder of an offline run that has been opened in `folder`.

    Raises `OSError` when the SDK has put it elsewhere: into the temporary folder, where nobody looks for it,
    when its own could not be made or written to after it was checked.
    """
    place = Path(run.dir).parent
    if not place.resolve().is_relative_to(folder.resolve()):
        run.finish(exit_code=1)
        raise OSError(
            f"W&B could not write to {folder} and went to {place}; make room there, or choose another dir"
        )
    (place / _OPEN).write_text(f"{run.id}\n{start.run_id or ''}", encoding="utf-8")
    (place / _OWNER).write_text(json.dumps(mark(start)), encoding="utf-8")
    return OfflineRun(place)


def end_offline(run: wandb.Run) -> None:
    """Note that the run's file is whole."""
    (Path(run.dir).parent / _OPEN).unlink(missing_ok=True)


def remove_cut_off(folder: Path, start: RunStart) -> None:
    """Remove what cut-off deliveries of the run left: folders marked with the W&B run's id and the run's."""
    for found in folder.glob(f"offline-run-*/{_OPEN}"):
        wandb_id, _, run_id = found.read_text(encoding="utf-8").partition("\n")
        if wandb_id == start.tracker_run_id and run_id in ("", start.run_id):
            shutil.rmtree(found.parent)


def continued_by_another(folder: Path, start: RunStart) -> bool:
    """Whether another run has continued the W&B run offline: `wandb sync` would drop the rows of one."""
    for place in _places(folder, start.tracker_run_id or ""):
        try:
            found = json.loads((place / _OWNER).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not marked, by an earlier version or by W&B alone
            continue
        if is_of_another(found, start):
            return True
    return False


def to_sync(run: wandb.Run) -> str:
    """What `wandb sync` is to be given: the run's folder, or all of them when it was resumed."""
    place = Path(run.dir).parent
    return " ".join(shlex.quote(str(each)) for each in _places(place.parent, run.id) or [place])


def require_writable(folder: Path) -> None:
    """Where it cannot write, W&B falls back to the temporary folder, where nobody looks."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        remedy = "choose another folder with the option dir, or WANDB_DIR"
        raise WandbUnusable("no_permission", f"{folder} cannot be written to", remedy, str(folder))


def _places(folder: Path, wandb_id: str) -> list[Path]:
    name = f"offline-run-*-{glob.escape(wandb_id)}"
    # A second one in the same second gets a number behind the id.
    return sorted({*folder.glob(name), *folder.glob(f"{name}-[0-9]*")})
