"""Unusable rows: the first one ends the run, unless they are skipped; then they are listed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fmstune.access import reason
from fmstune.errors import DataError
from fmstune.text import counted

_SHOWN = 3


@dataclass
class BadRows:
    """How bad rows are handled. With `skip` they are counted, and listed in `file` if there is one; with
    `extends`, the rows already listed there stay and are not listed again."""

    skip: bool = False
    file: Path | None = None
    count: int = 0
    first: list[str] = field(default_factory=list)
    extends: bool = False
    known: set[str] | None = None
    """The lines of the file, once it has been read."""

    def reject(self, place: str, error: DataError) -> None:
        """Handle a bad row. Raises the error, unless bad rows are skipped."""
        if not self.skip:
            raise error
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(str(error))
        if self.file is not None and os.environ.get("RANK", "0") == "0":
            entry = {"place": place, "reason": str(error).removeprefix(place).lstrip(": ")}
            try:
                self._list(json.dumps(entry), self.file)
            except OSError as failed:
                raise DataError(f"{self.file} cannot be written: {reason(failed, self.file)}.") from error

    def _list(self, line: str, file: Path) -> None:
        if self.extends:
            if self.known is None:
                self.known = set(file.read_text(encoding="utf-8").splitlines()) if file.exists() else set()
            if line in self.known:
                return
            self.known.add(line)
        with file.open("a" if self.extends or self.count > 1 else "w", encoding="utf-8") as listed:
            listed.write(f"{line}\n")

    def lines(self) -> Iterator[str]:
        """Readable lines: why the first ones are left out, and how many more there are."""
        yield from self.first
        more = self.count - len(self.first)
        if more > 0:
            listed = f"; all are in {self.file}" if self.file is not None else ""
            yield f"{counted(more, 'more row is', 'more rows are')} left out{listed}"
