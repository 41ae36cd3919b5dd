"""What a run has made, handed to the trackers that hold files: `tracking.artifacts`."""

from __future__ import annotations

from pathlib import Path

from fmstune.config.schema.tables import RunConfig
from fmstune.console import RunConsole
from fmstune.delivery.artifacts import record
from fmstune.delivery.recorder import Recorder
from fmstune.layout import ERROR_LOG
from fmstune.run.directory import written
from fmstune.text import counted

_LEFT_OUT = (ERROR_LOG, "training_args.bin", "report.html", "skipped_rows.jsonl", "stream_counts")
"""Of this machine alone; and the report, which is written when the trackers have all else."""


def hand_over(config: RunConfig, directory: Path, recorder: Recorder, out: RunConsole, kind: str) -> None:
    """Give the model or adapter, with its configuration and its card, to the trackers that are to hold it.

    The files are linked, not copied: a later run in this directory deletes them before it writes its own.
    """
    if config.tracking.artifacts == "none":
        return
    made = [entry for entry in written(directory) if entry.is_file() and entry.name not in _LEFT_OUT]
    item = record(recorder, {entry.name: entry for entry in made}, kind, kind, link=True)
    if "lost" in item:
        out.warn(f"the {kind} is not handed to trackers: {item['lost']}")
    else:
        out.say("artifact", f"{kind}: {counted(item['files'], 'file')}, {item['size'] / 1e6:.1f} MB")
