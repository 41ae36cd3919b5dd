"""Report unused parts of a stream while it is read: each kind at its first row, and the counts when it
ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fmstune.console import RunConsole
from fmstune.data.rows.unused import NotUsed
from fmstune.data.stream_counts import StreamCounts, read_counts, remove_counts, with_counts
from fmstune.delivery.recorder import Recorder
from fmstune.launch.environment import is_main_process
from fmstune.training.build import BuiltTrainer


class StreamWatch(TrainerCallback):
    """Reports what is not used of the stream of the run in `directory`, as soon as a row with it is read,
    except for what was `said` before."""

    def __init__(self, directory: Path, said: Sequence[NotUsed], out: RunConsole) -> None:
        self._directory, self._out = directory, out
        self._reported = {_kind(entry) for entry in said}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.report_new(read_counts(self._directory))

    def report_new(self, parts: Sequence[StreamCounts]) -> None:
        """Report the kinds that have not been reported yet."""
        for entry in (entry for part in parts for entry in (*part.unused, *part.lost)):
            if _kind(entry) not in self._reported:
                self._reported.add(_kind(entry))
                what = (
                    f"the column {entry.what} of {entry.source} is not used" if entry.column else entry.what
                )
                self._out.warn(f"{what}; the first row is {entry.first}" if entry.first else what)


def _kind(entry: NotUsed) -> tuple[str, bool, str]:
    return entry.source, entry.column, entry.what


def stream_ended(built: BuiltTrainer, directory: Path, recorder: Recorder, out: RunConsole) -> BuiltTrainer:
    """Report and record the counts of a stream, with what was not used. Returns `built` with these counts."""
    if not is_main_process() or not (parts := read_counts(directory)):
        return built
    remove_counts(directory)
    data = with_counts(built.data, parts)
    out.say("data", data.line())
    for line in data.unused_lines():
        out.warn(line)
    recorder.set_params(data.as_params(), "data")
    return replace(built, data=data)
