"""The console of a run that sums it up at its end: for people on standard error, for scripts on standard
output."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from rich.console import Console

from fmstune.console import RunConsole
from fmstune.report.ending import Ending, ending
from fmstune.report.page import NoCharts, write_report
from fmstune.report.words import printable, strict
from fmstune.secrets.redaction import hide, process_redactor

Answer = Literal["directory", "json"]
_TITLES = {"finished": "green", "failed": "red", "interrupted": "yellow"}


class SummingConsole(RunConsole):
    """Sums the run up at its end. `answer` is what standard output gets then: the run's directory, unless it
    is a terminal, whose reader has that in the summary; the whole summary as JSON; or nothing."""

    def __init__(self, console: Console, *, quiet: bool = False, answer: Answer | None = None) -> None:
        super().__init__(console, quiet=quiet)
        self._answer = answer

    def end(self, directory: Path) -> None:
        found = ending(directory)
        self._sum_up(found)
        self._report(directory)
        if self._answer == "json":
            summary = {"kind": "end", **process_redactor().value(found.to_json(), tracked=True)}
            print(json.dumps(strict(summary), ensure_ascii=False, default=str), flush=True)
        elif self._answer == "directory" and not sys.stdout.isatty():
            print(hide(str(directory)), flush=True)

    def _report(self, directory: Path) -> None:
        try:
            self.say("report", str(write_report(directory)))
        except NoCharts as error:
            self.say("report", str(error))
        # A page that cannot be made is no reason for a training that worked to have failed.
        except Exception as error:
            self.warn(f"no report could be written: {type(error).__name__}: {error}")

    def _sum_up(self, found: Ending) -> None:
        if self.quiet:
            return
        if self.console.is_terminal:
            self.console.rule(found.status, style=_TITLES.get(found.status, ""), align="left")
        for label, text in found.lines():
            self.say(label, printable(text))
