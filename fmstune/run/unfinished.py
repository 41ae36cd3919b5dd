"""Choose the run whose own settings `--resume` continues with: a bare one takes the newest unfinished run."""

from __future__ import annotations

import os
from pathlib import Path

from fmstune.access import denied
from fmstune.config.paths.runs import RUNS, holds_run
from fmstune.config.schema.tables import RunConfig
from fmstune.delivery.journal.reader import LaterJournal, is_being_written
from fmstune.errors import ConfigError
from fmstune.layout import CONFIG_NAME, JOURNAL_NAME, TRACKING_DIR
from fmstune.models.checkpoints import is_checkpoint
from fmstune.run.directory import run_state
from fmstune.text import shown_path


def to_resume(config: Path | None) -> Path:
    """The directory of the run to resume: the one whose `config.toml` is given, or the newest in `runs/` that
    did not finish and has no process. Raises `ConfigError` if there is none."""
    if config is not None:
        if config.name == CONFIG_NAME and holds_run(config.parent):
            return config.parent
        raise ConfigError(
            f"--resume does not know which run of {config} to resume: add its directory with --output-dir, "
            "or pass the config.toml in it instead."
        )
    closed = _closed()
    journals = sorted(RUNS.glob(f"*/{TRACKING_DIR}/{JOURNAL_NAME}"), key=_changed, reverse=True)
    for journal in journals:
        run = journal.parent.parent
        try:
            if is_being_written(journal):
                continue
            if run_state(run) != "finished" and (run / CONFIG_NAME).is_file():
                return run
        except LaterJournal:  # this version cannot resume it
            continue
        except PermissionError:
            closed.append(run)
    if closed:
        raise ConfigError(
            f"--resume finds no unfinished run in {RUNS}/, where {shown_path(closed[0])} cannot be read: "
            f"{denied(closed[0] / TRACKING_DIR / JOURNAL_NAME)}."
        )
    raise ConfigError(
        f"--resume finds no unfinished run in {RUNS}/ (`fmstune runs list` shows all); add a run's "
        "directory with --output-dir."
    )


def continued(resume: str, config: RunConfig) -> Path | None:
    """The directory of the run that continues with its own `config.toml`, because nothing else says what to
    train: without it, `config` would tune the demo. `resume` is `auto`, or the path of a checkpoint or run.

    Raises `ConfigError` if there is a run or checkpoint, but no `config.toml`.
    """
    if not config.demo_by_default:
        return None
    named = Path((config.output_dir or "") if resume == "auto" else resume)
    run = named.parent if is_checkpoint(named) else named
    if (run / CONFIG_NAME).is_file():
        return run
    if holds_run(run) or (resume != "auto" and named.exists()):
        raise ConfigError(
            f"--resume: no {shown_path(run / CONFIG_NAME)} says what {shown_path(named)} trains: "
            "add --model and --data."
        )
    return None


def _closed() -> list[Path]:
    """The directories of runs that this user may not enter, which patterns leave out."""
    if not RUNS.is_dir():
        return []
    if not os.access(RUNS, os.R_OK | os.X_OK):
        return [RUNS]
    tracked = (each / TRACKING_DIR for each in RUNS.iterdir())
    return [each.parent for each in tracked if any(map(_is_closed, (each.parent, each)))]


def _is_closed(path: Path) -> bool:
    return os.path.isdir(path) and not os.access(path, os.X_OK)  # noqa: PTH112  (`Path.is_dir` raises)


def _changed(journal: Path) -> float:
    try:
        return journal.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0
