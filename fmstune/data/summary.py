"""The summary of a run's data, for people and for trackers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fmstune.data.rows.unused import NotUsed, unused_lines
from fmstune.text import counted

_IN_FIRST = " (counted in the first rows of the stream)"


def learns_chats(shape: str) -> bool:
    """Whether rows of a shape, as a summary names it, are learnt in the format of a chat template."""
    return any(name in shape for name in ("messages", "conversation"))


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """One source: its training rows, and how often each of them is in the mixture on average."""

    source: str
    shape: str
    rows: int
    times: float = 1.0
    weight: float | None = None
    sha256: str | None = None
    fingerprint: str | None = None

    def line(self) -> str:
        """A readable line: `b.jsonl 100 rows (x2)`."""
        times = f" (x{self.times:.3g})" if self.times != 1 else ""
        return f"{self.source} {counted(self.rows, 'row')}{times}"


@dataclass(frozen=True, slots=True)
class DataSummary:
    """A summary of the data. Lengths are in tokens; `truncated` and `dropped` count rows: truncated to the
    maximum length, and left out since nothing to train was left. `skipped` counts rows that were left out
    as bad, `duplicates` rows whose tokens equal another's, `eval_in_train` rows to evaluate on that are
    also trained on. In preferences, a prompt counts once for each of its answers; `same` counts pairs that
    were left out as their answers do not differ, `reworded` rows whose prompt ends in other tokens once an
    answer follows it. `split` counts conversations that became several rows, `split_rows` these rows, and
    `tokens_again` the cost: tokens that more than one of them has. For a stream nothing is counted before
    the run; when it ends, the figures are those of the rows that were `read`, each once, and `whole` means
    that these are all there are; its files are identified by their `fingerprint`. `eval_truncated`,
    `eval_dropped` and `eval_same` count rows to evaluate on, `eval_sets` those of each set that has a name.
    """

    source: str
    shape: str
    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    truncated: int
    dropped: int
    sha256: str | None = None
    fingerprint: str | None = None
    eval_source: str | None = None
    eval_rows: int = 0
    eval_sha256: str | None = None
    skipped: int = 0
    duplicates: int = 0
    eval_in_train: int = 0
    eval_truncated: int = 0
    eval_dropped: int = 0
    eval_same: int = 0
    eval_sets: tuple[tuple[str, int], ...] = ()
    same: int = 0
    reworded: int = 0
    split: int = 0
    split_rows: int = 0
    tokens_again: int = 0
    streaming: bool = False
    read: int = 0
    whole: bool = False
    prepared_before: bool = False
    sources: tuple[SourceSummary, ...] = ()
    """More than one, if the data are a mixture."""
    unused: tuple[NotUsed, ...] = ()
    """What does not reach the model; for a stream before the run, of its first rows."""
    eval_unused: tuple[NotUsed, ...] = ()
    """The same for rows to evaluate on."""

    def as_params(self) -> dict[str, Any]:
        """The summary as parameters of the run."""
        params = {key: value for key, value in asdict(self).items() if value is not None}
        params["unused"] += params.pop("eval_unused")
        params["eval_sets"] = dict(self.eval_sets)
        for name in (
            "same",
            "reworded",
            "split",
            "split_rows",
            "tokens_again",
            "read",
            "whole",
            "unused",
            "eval_truncated",
            "eval_dropped",
            "eval_same",
            "eval_sets",
        ):  # if there are any
            if not params[name]:
                del params[name]
        if self.sources:
            params["sources"] = [
                {key: value for key, value in asdict(each).items() if value is not None}
                for each in self.sources
            ]
        else:
            del params["sources"]
        return params

    def unused_lines(self) -> list[str]:
        """Readable lines: what does not reach the model, one line per kind."""
        if not self.streaming:
            return unused_lines((*self.unused, *self.eval_unused))
        counted_in = ""
        if not self.whole:
            counted_in = f" (of the {counted(self.read, 'row')} that were read)" if self.read else _IN_FIRST
        return [f"{line}{counted_in}" for line in unused_lines(self.unused)] + unused_lines(self.eval_unused)

    def line(self) -> str:
        """The summary as a readable line."""
        share = self.trained_tokens / max(1, self.tokens)
        if self.streaming:
            parts = [f"{self.source} · streamed ({self.shape})"]
            if self.read:
                read = f"{'all ' if self.whole else ''}{counted(self.read, 'row')} read"
                parts.append(f"{read}, {counted(self.tokens, 'token')}, {share:.0%} trained")
        else:
            rows, tokens = counted(self.rows, "row"), counted(self.tokens, "token")
            parts = [*(each.line() for each in self.sources)] or [self.source]
            parts.append(f"{rows} ({self.shape}), {tokens}, {share:.0%} trained")
        if self.split:
            cost = self.tokens_again / max(1, self.tokens - self.tokens_again)
            became = f"{counted(self.split, 'conversation')} split into {counted(self.split_rows, 'row')}"
            why = f"the chat template renders history differently from answers (+{cost:.0%} tokens)"
            parts.append(f"{became}: {why}")
        if self.truncated:
            parts.append(f"{counted(self.truncated, 'row')} cut")
        if self.dropped:
            parts.append(f"{counted(self.dropped, 'row')} left out (too long for training.max_length)")
        if self.same:
            parts.append(f"{counted(self.same, 'row')} left out (chosen and rejected are the same)")
        if self.skipped:
            parts.append(f"{counted(self.skipped, 'bad row')} skipped")
        if self.duplicates:
            parts.append(counted(self.duplicates, "row repeats another", "rows repeat others"))
        if self.prepared_before:
            parts.append("prepared before")
        if self.eval_rows:
            parts.append(f"eval {self._eval_rows()}")
        if self.eval_in_train:
            parts.append(f"{self.eval_in_train:,} of them trained on, too")
        return " · ".join(parts)

    def eval_line(self) -> str:
        """The rows to evaluate on, as a readable line."""
        return f"{self.eval_source} · {self._eval_rows(f' ({self.shape})')}"

    def _eval_rows(self, shape: str = "") -> str:
        sets = ", ".join(f"{name} {count:,}" for name, count in self.eval_sets)
        named = f": {sets}" if sets else ""
        return f"{counted(self.eval_rows, 'row')}{shape}{named}{self._lost_of_eval()}"

    def _lost_of_eval(self) -> str:
        lost = [
            f"{number:,} {what}"
            for number, what in (
                (self.eval_truncated, "cut"),
                (self.eval_dropped, "left out: too long for training.max_length"),
                (self.eval_same, "left out: chosen and rejected are the same"),
            )
            if number
        ]
        return f" ({', '.join(lost)})" if lost else ""


def joined(texts: Sequence[str]) -> str:
    """The texts on one line, each once."""
    return " + ".join(dict.fromkeys(texts))
