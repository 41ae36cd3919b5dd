"""Which split to use, of those that a folder, a file or a data set has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fmstune.config.paths.splits import split_called, split_named
from fmstune.errors import DataError
from fmstune.text import listed


@dataclass(frozen=True, slots=True)
class Wanted:
    """The split to use; `chosen`: the user has named it, under the table `table`.

    `columns` are those that the user has named: an object that has them is a row. `by_files`: the source is
    a directory, whose files were chosen by their names. `evaluated` are the splits of the source that are
    evaluation data.
    """

    split: str
    chosen: bool = False
    table: str = "data.train"
    columns: frozenset[str] = frozenset()
    by_files: bool = False
    evaluated: frozenset[str] = frozenset()

    def skips(self, name: str) -> bool:
        """Whether a name is that of another split."""
        if self.chosen:
            return name != self.split
        return split_named(name) not in (None, self.split)

    def require_whole(self, name: str) -> None:
        """Raise `DataError` if the user named a split of a file that has none: like `datasets`, it is called
        train, or what the file is named after."""
        fits = self.split == "train" or split_called(self.split) == split_named(name)
        if self.chosen and not self.by_files and not fits:
            raise DataError(
                f"{name} has no split {self.split}; leave out the split under [[{self.table}]], or select a "
                "part with train[:10%] or train[100:200]."
            )

    def report_others(self, others: Iterable[str], source: str, say: Callable[[str], None]) -> None:
        """Report the splits that are neither trained on nor evaluated, unless the user has named the
        split."""
        there = [
            name
            for name in dict.fromkeys(others)
            if name not in self.evaluated and split_named(name) not in self.evaluated
        ]
        if there and not self.chosen and self.split == "train":
            splits, are = ("split", "is") if len(there) == 1 else ("splits", "are")
            remedy = "use split under [[data.eval]] or [[data.train]] to choose one"
            if held_out := next((name for name in there if split_named(name) == "validation"), None):
                remedy = f"--eval-data {source} evaluates {held_out}"
            say(f"{source}: the {splits} {listed(there)} {are} not trained on; {remedy}")

    def choose(self, names: Iterable[str], source: str) -> str:
        """The one to use: of this name, or the only one of this kind (`train_sft`), or the only one at all.
        Raises `DataError` with the existing ones."""
        there = list(names)
        if self.split in there:
            return self.split
        if not self.chosen:
            fitting = [name for name in there if split_named(name) == self.split]
            if len(fitting) == 1:
                return fitting[0]
            if len(there) == 1 and not fitting:
                return there[0]
        raise DataError(
            f"{source} has no split {self.split}; it has {', '.join(there)}. Choose one with split under "
            f"[[{self.table}]]."
        )
