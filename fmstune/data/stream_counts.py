"""Counts of what has been read of a stream, by the process that reads it, for the one that trains.

A worker of the data loader is a separate process, so counts go through files, each replaced as a whole. A
row counts once, when it is first read, before it is trained on: what is not used is counted for all rows
that were trained on. If several processes each read all rows, the main one counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.data.rows.unused import NotUsed, Unused
from fmstune.data.summary import DataSummary
from fmstune.data.tokens.table import TokenRow
from fmstune.system.files import replace_text

FOLDER = "stream_counts"
"""A folder in the run's directory that exists during the run."""

CUT = "rows are truncated to training.max_length"
DROPPED = "rows are left out: truncated to training.max_length, they have no token to train on"
SAME = "pairs are left out: their chosen and rejected are the same"
SKIPPED = "bad rows are left out"
REWORDED = (
    "a prompt ends with other tokens when an answer follows; the difference counts as part of the answer"
)


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """What was read of some sources. `figures` are those of `DataSummary`, and `read`, the number of rows;
    `whole`: these are all there are. `lost` are the rows that were truncated or left out."""

    figures: Mapping[str, int]
    whole: bool
    unused: tuple[NotUsed, ...]
    lost: tuple[NotUsed, ...]


class Tally:
    """Count the rows of some readers that share their `bad` rows."""

    def __init__(self, readers: Sequence[Reader], bad: BadRows) -> None:
        self._readers, self._bad = readers, bad
        self._lost = [Unused(reader.source.path) for reader in readers]
        self._figures: Counter[str] = Counter()
        self._answer = 0, 0
        self.added = 0
        """How many rows were added."""
        self.whole = False

    def add(self, number: int, row: TokenRow) -> None:
        """Count a row of the reader with this number."""
        figures, lost = self._figures, self._lost[number]
        self.added += 1
        if row.parts > 1:
            self._add_part(row)
        for name, what, there in (
            ("same", SAME, row.same),
            ("reworded", REWORDED, row.reworded),
            ("truncated", CUT, row.cut and bool(row.trained)),
            ("dropped", DROPPED, not row.trained and not row.same),
        ):
            if there:
                figures[name] += 1
                lost.add(what, row.place)
        if row.trained:
            figures["rows"] += 1
            figures["tokens"] += row.length
            figures["trained_tokens"] += row.trained
            figures["longest"] = max(figures["longest"], row.longest)

    def counts(self) -> StreamCounts:
        """The counts so far."""
        lost = [entry for each in self._lost for entry in each.entries()]
        bad = self._bad
        if bad.count:
            lost.append(NotUsed(joined_paths(self._readers), SKIPPED, bad.count, bad.first[0].rstrip(".")))
        unused = tuple(entry for reader in self._readers for entry in reader.unused.entries())
        figures = {**self._figures, "skipped": bad.count, "read": sum(each.read for each in self._readers)}
        return StreamCounts(figures, self.whole, unused, tuple(lost))

    def _add_part(self, row: TokenRow) -> None:
        """Count a row of a split conversation: all but the longest one repeat tokens."""
        total, longest = (0, 0) if row.part == 1 else self._answer
        before = total - longest
        total, longest = total + row.length, max(longest, row.length)
        self._answer = total, longest
        self._figures["split"] += row.part == 1
        self._figures["split_rows"] += 1
        self._figures["tokens_again"] += total - longest - before


def joined_paths(readers: Sequence[Reader]) -> str:
    """The names of the sources of some readers."""
    return " + ".join(dict.fromkeys(reader.source.path for reader in readers))


def counts_folder(run: Path | None) -> Path | None:
    """An empty folder in a run's directory for the counts of a stream; `None` where they are not needed, as
    in all processes but the main one."""
    if run is None or os.environ.get("RANK", "0") != "0":
        return None
    remove_counts(run)
    with contextlib.suppress(OSError):  # see `write_counts`
        (run / FOLDER).mkdir(parents=True)
    return run / FOLDER


def remove_counts(run: Path) -> None:
    """Remove the counts from a run's directory."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def write_counts(counts: StreamCounts, file: Path) -> None:
    """Write what has been read. If that fails (a full disk) the training continues, and the final report
    covers the rows that could be counted, with their number."""
    with contextlib.suppress(OSError):
        replace_text(file, json.dumps(asdict(counts)))


def read_counts(run: Path) -> list[StreamCounts]:
    """The counts of each part of a run's stream so far."""
    found = []
    for file in sorted((run / FOLDER).glob("*.json")):
        with contextlib.suppress(OSError):  # it is removed with the run
            raw = json.loads(file.read_text(encoding="utf-8"))
            unused, lost = (tuple(NotUsed(**each) for each in raw[name]) for name in ("unused", "lost"))
            found.append(StreamCounts(raw["figures"], raw["whole"], unused, lost))
    return found


def with_counts(summary: DataSummary, parts: Sequence[StreamCounts]) -> DataSummary:
    """The summary of a stream with the counts of its parts."""
    figures: dict[str, Any] = dict(sum((Counter(part.figures) for part in parts), Counter()))
    figures["longest"] = max(part.figures.get("longest", 0) for part in parts)
    figures["skipped"] = figures.get("skipped", 0) + summary.skipped  # the rows to evaluate on
    unused = tuple(entry for part in parts for entry in part.unused)
    return replace(summary, **figures, whole=all(part.whole for part in parts), unused=unused)
