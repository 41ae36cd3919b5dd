"""The run's directory: choose it without overwriting a finished run, and list or remove a run's files."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from fmstune.config.paths.runs import nearest_run
from fmstune.config.schema.tables import RunConfig
from fmstune.delivery.journal.reader import (
    JournalError,
    JournalReader,
    LaterJournal,
    final_status,
    is_being_written,
    lock_path,
    writer,
)
from fmstune.errors import ConfigError
from fmstune.layout import (
    CONFIG_NAME,
    DATA_ROWS,
    ERROR_LOG,
    JOURNAL_NAME,
    NAMED_TEMPLATES,
    REPORT,
    TRACKING_DIR,
    TRAIN_LOG,
    UNFINISHED,
)
from fmstune.models.checkpoints import (
    checkpoints,
    damage,
    is_checkpoint,
    newest_checkpoint,
    obstacle,
    step_of,
)
from fmstune.models.unfinished import restore_names
from fmstune.system.files import is_writable

# The files of a run; --overwrite removes only these.
_OURS = (
    *(TRACKING_DIR, CONFIG_NAME, ERROR_LOG, "README.md", REPORT, DATA_ROWS, "rehearsal"),
    *("skipped_rows.jsonl", "stream_counts", TRAIN_LOG, UNFINISHED, NAMED_TEMPLATES),
)
_MODEL_FILES = re.compile(
    r"(model|adapter_model|pytorch_model|base_model).*\.(safetensors|bin|json)|(adapter_|generation_)?config\.json"
    r"|train-machine-\d+\.log|rehearsal-\d+|(tokenizer|special_tokens|added_tokens|vocab|merges|training_args|chat_template).*"
)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run's directory. `checkpoint` is the one to resume from, `step` its optimizer step; `finished` means
    that there is nothing left to do. `unusable` lists newer checkpoints that cannot be resumed from, and
    why. `journal_bytes` is the size of its journal when it was chosen, `None` without one, and shows whether
    another process has changed the run since; `has_generated_name`: the user did not choose its name, so it
    may change."""

    path: Path
    checkpoint: Path | None = None
    step: int = 0
    finished: bool = False
    unusable: tuple[str, ...] = ()
    journal_bytes: int | None = None
    has_generated_name: bool = False


def claim(config: RunConfig, resume: str | None, *, overwrite: bool, main: bool = True) -> RunDirectory:
    """Find or choose the directory of this run, without creating it.

    `resume` is `auto`, or the path of a checkpoint or of a run. `main` means rank zero; the other ranks
    assume that files in the directory are from rank zero. Raises `ConfigError` if the directory holds a run
    that would be overwritten, or if no checkpoint can be resumed from; `LaterJournal` if the run in it is of
    a later version.
    """
    found = _found(config, resume, overwrite=overwrite, main=main)
    if main and found.checkpoint is not None:
        run_state(found.path)
    if main and not found.finished:
        _require_writable(found.path)
    return dataclasses.replace(found, journal_bytes=journal_bytes(found.path))


def journal_bytes(path: Path) -> int | None:
    """The size of the journal of the run in a directory; `None` without one."""
    try:
        return (path / TRACKING_DIR / JOURNAL_NAME).stat().st_size
    except OSError:
        return None


def _found(config: RunConfig, resume: str | None, *, overwrite: bool, main: bool) -> RunDirectory:
    path = Path(config.output_dir) if config.output_dir else None
    if resume is not None and resume != "auto":
        given = Path(resume)
        checkpoint = _given_checkpoint(given)
        unusable = () if checkpoint == given else _unusable(given, checkpoint)
        return RunDirectory(path or checkpoint.parent, checkpoint, step_of(checkpoint), unusable=unusable)
    if path is None:
        if resume == "auto":
            raise ConfigError(
                "--resume auto does not know which run to resume: add its directory with --output-dir."
            )
        return RunDirectory(_new_name(config), has_generated_name=_world_size() == 1)
    if _nearest(path) != path:
        _require_writable(path)
    elif main:
        _require_not_running(path)
    if overwrite or not path.exists() or not any(path.iterdir()) or has_not_begun(path):
        return RunDirectory(path)
    state = run_state(path)
    if resume == "auto" and state == "finished":
        return RunDirectory(path, finished=True)
    if resume == "auto" and state is not None:
        newest = _newest(path)
        return RunDirectory(path, newest, step_of(newest), unusable=_unusable(path, newest))
    if not main:
        return RunDirectory(path)
    if state is None and any(map(is_checkpoint, path.iterdir())):
        raise ConfigError(
            f"{path} holds checkpoints of a run without its journal: use another --output-dir, or replace "
            "them with --overwrite."
        )
    if state is None:
        raise ConfigError(f"{path} is not empty, and is not a run of fmstune; use another --output-dir.")
    how = "a finished run" if state == "finished" else f"a run that is {state}"
    go_on = "" if state == "finished" else " resume it (--resume),"
    raise ConfigError(f"{path} holds {how}: use another --output-dir,{go_on} or replace it with --overwrite.")


def _require_writable(path: Path) -> None:
    """Raise `ConfigError` if the directory cannot be created or written to."""
    nearest = _nearest(path)
    if not is_writable(nearest):
        raise ConfigError(
            f"training.output_dir = {str(path)!r}: {nearest} is not writable; use another directory."
        )


def _nearest(path: Path) -> Path:
    """The directory itself, or the existing one in which it can be created. Raises `ConfigError` if there is
    something else."""
    where = f"training.output_dir = {str(path)!r}"
    nearest = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not nearest.exists():
        target = nearest.readlink()
        raise ConfigError(f"{where}: {nearest} is a link to {target}, which does not exist; create it first.")
    if not nearest.is_dir():
        it = "this" if nearest == path else nearest
        raise ConfigError(f"{where}: {it} is a file; use a directory.")
    return nearest


def _require_not_running(path: Path) -> None:
    """Raise `ConfigError` if a process is still running the run in `path`."""
    journal = path / TRACKING_DIR / JOURNAL_NAME
    if is_being_written(journal):
        raise ConfigError(
            f"{path}: {writer(journal)} is running this run; wait until it ends, or use another --output-dir."
        )


def has_not_begun(path: Path) -> bool:
    """Whether all that a directory holds is from a run that ended before its journal was begun: its lock, and
    its configuration."""
    tracking = path / TRACKING_DIR
    if not tracking.is_dir() or not os.access(tracking, os.R_OK | os.X_OK):
        return False
    lock = lock_path(tracking / JOURNAL_NAME)
    return {*path.iterdir()} <= {tracking, path / CONFIG_NAME} and {*tracking.iterdir()} == {lock}


def run_state(path: Path) -> Literal["finished", "failed", "interrupted"] | None:
    """How the run in a directory ended; `None` if the directory holds no run. Raises `LaterJournal`."""
    journal = path / TRACKING_DIR / JOURNAL_NAME
    try:
        JournalReader(journal)
        final = final_status(journal)
    except LaterJournal:
        raise
    except (OSError, JournalError):
        # An emptied or damaged journal is restored from what its trackers know.
        return "interrupted" if os.path.lexists(journal) else None
    status = final.status if final is not None else None
    return status if status in ("finished", "failed") else "interrupted"  # type: ignore[return-value]


def run_files(path: Path) -> list[Path]:
    """The files in a directory that a run writes, recognised by their names."""
    entries = path.iterdir() if path.exists() else ()
    return [
        entry
        for entry in entries
        if entry.name in _OURS or is_checkpoint(entry) or _MODEL_FILES.fullmatch(entry.name)
    ]


def clear(path: Path) -> None:
    """Remove the files of an earlier run from the directory, and nothing else: also where its tracking folder
    is a link, as a new journal would continue the old one. The lock stays: this run holds it."""
    tracking = path / TRACKING_DIR
    kept = lock_path(tracking / JOURNAL_NAME)
    if kept.exists():
        for entry in tracking.iterdir():
            if entry != kept:
                _remove(entry)
    for entry in run_files(path):
        if entry != tracking or not kept.exists():
            _remove(entry)


def _remove(entry: Path) -> None:
    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _given_checkpoint(path: Path) -> Path:
    if is_checkpoint(path) and not path.exists():
        _newest(path.parent)  # it may not have been renamed yet
    if not path.exists():
        raise ConfigError(f"--resume {path}: there is no such checkpoint or run.{nearest_run(path)}")
    if is_checkpoint(path.resolve()):
        why_not = obstacle(path)
        if why_not is not None:
            weights = "" if damage(path) else f" To start from its weights, use --model {path}."
            raise ConfigError(f"--resume {path}: cannot resume from this checkpoint: {why_not}.{weights}")
        return path
    newest = _newest(path)
    if newest is None:
        found = [f": of {each.name}, {obstacle(each)}" for each in checkpoints(path)[:1]]
        raise ConfigError(f"--resume {path}: it has no checkpoint to resume from{''.join(found)}.")
    return newest


def _newest(path: Path) -> Path | None:
    if not is_being_written(path / TRACKING_DIR / JOURNAL_NAME):
        restore_names(path)
    return newest_checkpoint(path)


def _unusable(path: Path, newest: Path | None) -> tuple[str, ...]:
    newer = [each for each in checkpoints(path) if step_of(each) > step_of(newest)]
    return tuple(f"{each} is skipped: {obstacle(each)}" for each in newer)


def _new_name(config: RunConfig) -> Path:
    model = re.sub(r"[^\w.-]+", "-", Path(config.model.path).name).strip("-") or "run"
    if _world_size() > 1:
        return Path("runs") / f"{model}-{_launch_time()}"
    stem = f"{model}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (Path("runs") / (stem + suffix) for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(name for name in names if not name.exists())


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _launch_time() -> str:
    """The start time and process id of this machine's launcher: the same for all of its ranks, and different
    from another launcher in the same second."""
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a run on several machines needs a directory that all of them share: add --output-dir."
        )
    launcher = psutil.Process(os.getppid())
    began = time.strftime("%Y%m%d-%H%M%S", time.localtime(launcher.create_time()))
    return f"{began}-{launcher.pid}"
