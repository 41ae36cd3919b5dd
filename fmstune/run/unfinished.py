"""Choose the run for a bare `--resume`: the newest unfinished one, with its own settings."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fmstune.config.paths.runs import RUNS, holds_run
from fmstune.delivery.journal.reader import LaterJournal, is_being_written
from fmstune.errors import ConfigError
from fmstune.layout import CONFIG_NAME, JOURNAL_NAME, TRACKING_DIR
from fmstune.run.directory import run_state


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
    journals = sorted(RUNS.glob(f"*/{TRACKING_DIR}/{JOURNAL_NAME}"), key=_changed, reverse=True)
    runs = (journal.parent.parent for journal in journals if not is_being_written(journal))
    for run in runs:
        with contextlib.suppress(LaterJournal):  # this version cannot resume it
            if run_state(run) != "finished" and (run / CONFIG_NAME).is_file():
                return run
    raise ConfigError(
        f"--resume finds no unfinished run in {RUNS}/ (`fmstune runs list` shows all); add a run's "
        "directory with --output-dir."
    )


def _changed(journal: Path) -> float:
    try:
        return journal.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0
