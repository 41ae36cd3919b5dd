"""The console of a run that summarises it when it ends: on standard error for people, on standard output for
scripts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console

from fmstune.access import reason
from fmstune.console import LABEL, RunConsole
from fmstune.launch.failures import in_words
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
    """Write to the file descriptor directly: Python would retry buffered data of a failed write at exit.
    Raises `OSError` and `ValueError`."""
    try:
        number = file.fileno()
    except (OSError, ValueError, AttributeError):  # replaced by an in-memory stream
        print(data.decode("utf-8", "replace"), end="", file=file, flush=True)
        return
    while data:
        data = data[os.write(number, data) :]


def _nothing() -> None: ...


class SummingConsole(RunConsole):
    """Summarises the run when it ends. `answer` selects the content of standard output. `directory`: the
    run's directory when it ends, unless it is a terminal, which has it in the summary. `json`: all events,
    one object per line, with the summary as the last one. `others` is the redirected output of libraries and
    user code."""

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
        """Whether the summary was printed to standard output."""
        self.before_end: Callable[[], None] = _nothing
        """Called before the last line."""

    def begin(self, directory: Path) -> None:
        if self._others is not None:
            self._others.set_directory(directory)

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
        self._print_summary(found)
        self._report(run)
        self._report_log()
        self.before_end()
        if self._answer == "json":
            self._emit("end", **found.to_json())
            self.answered = True
        elif self._answer == "directory" and not self._file.isatty():
            self._print_answer(hide(str(directory)))

    def _emit(self, kind: str, **values: Any) -> None:
        """Print a JSON object as a line of standard output; the last one is the summary."""
        if not self.quiet and not self.answered:
            record = {"kind": kind, **process_redactor().value(values, tracked=True)}
            self._print_answer(json.dumps(strict(record), ensure_ascii=False, default=str))

    def _print_answer(self, line: str) -> None:
        """Print a line to standard output, in UTF-8, with the original bytes of a path. If it is not writable
        (a full disk, a closed pipe), the training continues, after one warning."""
        if self._gone:
            return
        try:
            self._file.flush()
            write_bytes(self._file, line.encode("utf-8", "surrogateescape") + b"\n")
        except (OSError, ValueError) as error:
            self._gone = True
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self.warn(f"standard output cannot be written to ({reason}); the rest of it is lost")

    def _report(self, run: TrackedRun) -> None:
        try:
            self.say("report", str(write_report(run.directory, run)))
        except NoCharts as error:
            self.say("report", str(error))
        # A failed report must not fail a training that succeeded.
        except OSError as error:
            self.warn(f"the report could not be written: {reason(error, run.directory)}")
        except Exception as error:
            self.warn(f"the report could not be written: {in_words(error)}")

    def _report_log(self) -> None:
        """Report where the output of libraries and user code is, if there was any."""
        kept = self._others.kept() if self._others is not None else None
        if self._others is not None and kept is not None and kept.lines:
            self.say("log", f"{self._others.path}: {counted(kept.lines, 'line')} of libraries and callbacks")

    def _print_summary(self, found: Ending) -> None:
        if self.quiet:
            return
        if self.console.is_terminal:
            self.console.rule(found.status, style=_TITLES.get(found.status, ""), align="left")
        for label, text in found.lines():
            self.say(label, printable(text))
