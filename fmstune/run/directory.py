"""The run's directory: claiming it, never over a finished run, and what is written into it."""

from __future__ import annotations

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
from fmstune.models.unfinished import put_back
from fmstune.system.files import takes_files

# What a run writes; --overwrite removes these and nothing else.
_OURS = (
    *(TRACKING_DIR, CONFIG_NAME, ERROR_LOG, "README.md", REPORT, DATA_ROWS, "rehearsal"),
    *("skipped_rows.jsonl", "stream_counts", TRAIN_LOG, UNFINISHED),
)
_MODEL_FILES = re.compile(
    r"(model|adapter_model|pytorch_model).*\.(safetensors|bin|json)|(adapter_|generation_)?config\.json"
    r"|train-machine-\d+\.log|(tokenizer|special_tokens|added_tokens|vocab|merges|training_args|chat_template).*"
)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Where a run lives. `checkpoint` is what it resumes from, `step` the optimizer step of that;
    `finished` says that there is nothing left to do. `passed_over` names newer checkpoints that it
    cannot resume from, and why. `is_new`: no run is in it yet; `named_here`: nobody has asked for its name,
    so that it may get another one."""

    path: Path
    checkpoint: Path | None = None
    step: int = 0
    finished: bool = False
    passed_over: tuple[str, ...] = ()
    is_new: bool = False
    named_here: bool = False


def claim(config: RunConfig, resume: str | None, *, overwrite: bool, main: bool = True) -> RunDirectory:
    """Find, or name, the directory of this run; creates nothing yet.

    `resume` is `auto`, or the path of a checkpoint or of a run. `main` says that this is rank zero; others
    take what is in the directory for its work. Raises `ConfigError` when the directory holds a run that
    would be overwritten, or no checkpoint can be resumed from.
    """
    found = _found(config, resume, overwrite=overwrite, main=main)
    if main and not found.finished:
        _require_place(found.path)
    return found


def _found(config: RunConfig, resume: str | None, *, overwrite: bool, main: bool) -> RunDirectory:
    path = Path(config.output_dir) if config.output_dir else None
    if resume is not None and resume != "auto":
        given = Path(resume)
        checkpoint = _given_checkpoint(given)
        passed_over = () if checkpoint == given else _passed_over(given, checkpoint)
        return RunDirectory(
            path or checkpoint.parent, checkpoint, step_of(checkpoint), passed_over=passed_over
        )
    if path is None:
        if resume == "auto":
            raise ConfigError(
                "--resume auto needs to know which run to resume: give its directory with --output-dir."
            )
        return RunDirectory(_new_name(config), is_new=True, named_here=_world_size() == 1)
    _nearest(path)
    if main:
        _require_nobody(path)
    if overwrite or not path.exists() or not any(path.iterdir()):
        return RunDirectory(path, is_new=not overwrite)
    state = run_state(path)
    if resume == "auto" and state == "finished":
        return RunDirectory(path, finished=True)
    if resume == "auto" and state is not None:
        newest = _newest(path)
        return RunDirectory(path, newest, step_of(newest), passed_over=_passed_over(path, newest))
    if not main:
        return RunDirectory(path)
    if state is None:
        raise ConfigError(f"{path} is not empty, and holds no run of fmstune; give another --output-dir.")
    how = "a finished run" if state == "finished" else f"a run that is {state}"
    go_on = "" if state == "finished" else " resume it (--resume),"
    raise ConfigError(
        f"{path} holds {how}: give another --output-dir,{go_on} or replace it with --overwrite."
    )


def _require_place(path: Path) -> None:
    """Raise `ConfigError` when the directory cannot be made, or nothing can be written into it."""
    nearest = _nearest(path)
    if not takes_files(nearest):
        raise ConfigError(
            f"training.output_dir = {str(path)!r}: nothing can be written into {nearest}; give another "
            "directory."
        )


def _nearest(path: Path) -> Path:
    """The directory itself, or that in which it can be made. Raises `ConfigError` where something else is."""
    where = f"training.output_dir = {str(path)!r}"
    nearest = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not nearest.exists():
        target = nearest.readlink()
        raise ConfigError(f"{where}: {nearest} is a link to {target}, which is not there; make that first.")
    if not nearest.is_dir():
        it = "this" if nearest == path else nearest
        raise ConfigError(f"{where}: {it} is a file; give a directory.")
    return nearest


def _require_nobody(path: Path) -> None:
    """Raise `ConfigError` when a process is still at the run in `path`."""
    journal = path / TRACKING_DIR / JOURNAL_NAME
    if is_being_written(journal):
        raise ConfigError(
            f"{path}: {writer(journal)} is at this run; wait for its end, or give another --output-dir."
        )


def run_state(path: Path) -> Literal["finished", "failed", "interrupted"] | None:
    """How the run in a directory ended; `None` when the directory holds none."""
    journal = path / TRACKING_DIR / JOURNAL_NAME
    try:
        JournalReader(journal)
        final = final_status(journal)
    except (OSError, JournalError):
        # One that was emptied or damaged is begun again from what its trackers know.
        return "interrupted" if os.path.lexists(journal) else None
    status = final.status if final is not None else None
    return status if status in ("finished", "failed") else "interrupted"  # type: ignore[return-value]


def written(path: Path) -> list[Path]:
    """What a run has written into its directory, or may have: by its names, so that nothing else is taken."""
    entries = path.iterdir() if path.exists() else ()
    return [
        entry
        for entry in entries
        if entry.name in _OURS or is_checkpoint(entry) or _MODEL_FILES.fullmatch(entry.name)
    ]


def clear(path: Path) -> None:
    """Remove what an earlier run wrote into the directory, and nothing else: the lock, which this run holds,
    stays."""
    tracking = path / TRACKING_DIR
    kept = lock_path(tracking / JOURNAL_NAME)
    if kept.exists() and not tracking.is_symlink():
        for entry in tracking.iterdir():
            if entry != kept:
                _remove(entry)
    for entry in written(path):
        if entry != tracking or not kept.exists():
            _remove(entry)


def _remove(entry: Path) -> None:
    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _given_checkpoint(path: Path) -> Path:
    if is_checkpoint(path) and not path.exists():
        _newest(path.parent)  # it may wait for its name
    if not path.exists():
        raise ConfigError(f"--resume {path}: there is no such checkpoint or run.{nearest_run(path)}")
    if is_checkpoint(path.resolve()):
        why_not = obstacle(path)
        if why_not is not None:
            weights = "" if damage(path) else f" To begin with its weights, give it as --model {path}."
            raise ConfigError(
                f"--resume {path}: a run cannot resume from this checkpoint: {why_not}.{weights}"
            )
        return path
    newest = _newest(path)
    if newest is None:
        found = [f": of {each.name}, {obstacle(each)}" for each in checkpoints(path)[:1]]
        raise ConfigError(f"--resume {path}: it holds no checkpoint to resume from{''.join(found)}.")
    return newest


def _newest(path: Path) -> Path | None:
    if not is_being_written(path / TRACKING_DIR / JOURNAL_NAME):
        put_back(path)
    return newest_checkpoint(path)


def _passed_over(path: Path, newest: Path | None) -> tuple[str, ...]:
    newer = [each for each in checkpoints(path) if step_of(each) > step_of(newest)]
    return tuple(f"{each} is passed over: {obstacle(each)}" for each in newer)


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
    """When the launcher of this machine's ranks was started, and its process: the same for all of them, and
    for no other launcher of this second."""
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a run on several machines needs one directory that all of them see: give it with --output-dir."
        )
    launcher = psutil.Process(os.getppid())
    began = time.strftime("%Y%m%d-%H%M%S", time.localtime(launcher.create_time()))
    return f"{began}-{launcher.pid}"
