"""The console of a run that sums it up at its end: for people on standard error, for scripts on standard
output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console

from fmstune.console import LABEL, RunConsole
from fmstune.launch.output import Output
from fmstune.report.curves import TrackedRun, read_run
from fmstune.report.ending import Ending, ending_of
from fmstune.report.page import NoCharts, write_report
from fmstune.report.show import view_of
from fmstune.report.words import printable, strict
from fmstune.secrets.redaction import hide, process_redactor
from fmstune.text import counted

Answer = Literal["directory", "json"]
_TITLES = {"finished": "green", "failed": "red", "interrupted": "yellow"}


def write_bytes(file: TextIO, data: bytes) -> None:
    """Write to the file itself: what a buffer holds of a failed write, Python would try again at its end.
    Raises `OSError` and `ValueError`."""
    try:
        number = file.fileno()
    except (OSError, ValueError, AttributeError):  # one in memory that a program has put there
        print(data.decode("utf-8", "replace"), end="", file=file, flush=True)
        return
    while data:
        data = data[os.write(number, data) :]


def _nothing() -> None: ...


class SummingConsole(RunConsole):
    """Sums the run up at its end. `answer` is what standard output gets. `directory`: the run's, at the end,
    unless it is a terminal, whose reader has that in the summary. `json`: all that happens, an object a line,
    with the whole summary in the last one. `others` is the output of others, which is to be kept beside the
    run."""

    def __init__(
        self,
        console: Console,
        *,
        quiet: bool = False,
        answer: Answer | None = None,
        others: Output | None = None,
    ) -> None:
        super().__init__(console, quiet=quiet)
        self._answer, self._others = answer, others
        self._file, self._gone = others.out if others else sys.stdout, False
        self.answered = False
        """Whether the summary is on standard output."""
        self.before_end: Callable[[], None] = _nothing
        """Called before the last that is said."""

    def begin(self, directory: Path) -> None:
        if self._others is not None:
            self._others.keep_in(directory)

    def phase(self, name: str, total: int | None = None) -> None:
        if self._answer == "json":
            self._emit("phase", phase=name)

    def logged(self, stage: str, step: int, steps: int, values: Mapping[str, float], line: str) -> None:
        super().logged(stage, step, steps, values, line)
        if self._answer == "json":
            figures = {name.partition("/")[2]: value for name, value in values.items()}
            self._emit("metrics", stage=stage, step=step, steps=steps, values=figures)

    def _print(self, line: str, style: str | None = None) -> None:
        super()._print(line, style)
        if self._answer == "json":
            self._emit("message", label=line[:LABEL].strip(), text=line[LABEL + 1 :])

    def end(self, directory: Path) -> None:
        run = read_run(directory)
        found = ending_of(run, view_of(run))
        self._sum_up(found)
        self._report(run)
        self._say_kept()
        self.before_end()
        if self._answer == "json":
            self._emit("end", **found.to_json())
            self.answered = True
        elif self._answer == "directory" and not self._file.isatty():
            self._answered(hide(str(directory)))

    def _emit(self, kind: str, **values: Any) -> None:
        """A JSON object on a line of standard output, the last of which is the summary."""
        if not self.quiet and not self.answered:
            record = {"kind": kind, **process_redactor().value(values, tracked=True)}
            self._answered(json.dumps(strict(record), ensure_ascii=False, default=str))

    def _answered(self, line: str) -> None:
        """A line of standard output, in UTF-8 and with the bytes that a path has. One that is gone (a full
        disk, a pipe that nobody reads) ends no training: that is said once."""
        if self._gone:
            return
        try:
            self._file.flush()
            write_bytes(self._file, line.encode("utf-8", "surrogateescape") + b"\n")
        except (OSError, ValueError) as error:
            self._gone = True
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self.warn(f"standard output cannot be written to ({reason}): it lacks the rest")

    def _report(self, run: TrackedRun) -> None:
        try:
            self.say("report", str(write_report(run.directory, run)))
        except NoCharts as error:
            self.say("report", str(error))
        # A page that cannot be made is no reason for a training that worked to have failed.
        except Exception as error:
            self.warn(f"no report could be written: {type(error).__name__}: {error}")

    def _say_kept(self) -> None:
        """Where the output of others is, if there was any."""
        kept = self._others.kept() if self._others is not None else None
        if self._others is not None and kept is not None and kept.lines:
            self.say("log", f"{self._others.path}: {counted(kept.lines, 'line')} of libraries and callbacks")

    def _sum_up(self, found: Ending) -> None:
        if self.quiet:
            return
        if self.console.is_terminal:
            self.console.rule(found.status, style=_TITLES.get(found.status, ""), align="left")
        for label, text in found.lines():
            self.say(label, printable(text))
