"""Where rows come from: files, folders that `save_to_disk` wrote, the demo, the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fmstune import demo
from fmstune.config.paths.data import KINDS, FoundFiles, NoFiles, find_files, is_saved, local_path
from fmstune.config.paths.splits import Slice, split_named
from fmstune.config.schema.data import DataSource
from fmstune.data.files.formats import Found, numbered, read_file
from fmstune.data.files.opening import fingerprint_of, sha256_of
from fmstune.data.files.splits import Wanted
from fmstune.errors import DataError
from fmstune.text import first_line, listed

Split = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The files of a source, none for one on the hub."""

    source: DataSource
    split: Split
    files: tuple[Path, ...]
    columns: frozenset[str] = frozenset()
    """The columns that the user has named."""
    beside: tuple[str, ...] = ()
    """What is not read of the source, one sentence per kind."""
    evaluated: frozenset[str] = frozenset()
    """Its splits that are evaluation data."""

    @classmethod
    def of(cls, source: DataSource, split: Split, evaluation: Sequence[DataSource] = ()) -> Origin:
        """Find the files. `evaluation` is the evaluation data, of which splits of the source may be a part.
        Raises `DataError` when a name that looks like files matches none."""
        if source.path == "demo":
            return cls(source, split, (demo.data_file(split),))
        wanted = source.split or _SPLIT[split]
        try:
            found = find_files(source.path, wanted, chosen=source.split is not None)
        except NoFiles as error:
            here = f" (Looked for from {Path.cwd()}.)" if "no such file" in str(error) else ""
            raise DataError(f"{source.path}: {error}{here}") from None
        if found is None:
            return cls(source, split, ())
        beside = list(_beside(found, source.path))
        evaluated = frozenset(
            Slice.of(each.split or _SPLIT["eval"])[0] for each in evaluation if each.path == source.path
        )
        origin = cls(source, split, found.files, evaluated=evaluated)
        origin.wanted.report_others(found.other_splits, source.path, beside.append)
        origin = replace(origin, beside=tuple(beside))
        splits = _saved_splits(found.files[0], source.path)
        if splits is None:
            return origin
        taken = origin.wanted.choose(splits, source.path)
        others = [] if source.split else [each for each in splits if each != taken and not split_named(each)]
        if others:
            why = f"named after no split, as others there are; {_OWN}"
            beside.append(f"{source.path}: {listed(others)} not read: {why}")
        named = [each for each in splits if each != taken and split_named(each)]
        origin.wanted.report_others(named, source.path, beside.append)
        return replace(origin, files=(found.files[0] / taken,), beside=tuple(beside))

    @property
    def wanted(self) -> Wanted:
        """The split to read, if there are several."""
        split, chosen = self.source.split or _SPLIT[self.split], self.source.split is not None
        return Wanted(
            Slice.of(split)[0],
            chosen,
            f"data.{self.split}",
            self.columns,
            evaluated=self.evaluated,
            by_files=local_path(self.source.path).is_dir() and not is_saved(local_path(self.source.path)),
        )

    def rows(
        self, text_rows: str, *, streaming: bool, say: Callable[[str], None] = lambda text: None
    ) -> Iterator[Found]:
        """The rows, from the first one each time; `say` receives messages about the files. Raises
        `DataError`."""
        for each in self.beside:
            say(each)
        if not self.files:
            yield from _from_hub(self.source, self.split, streaming=streaming)
            return
        part = Slice.of(self.source.split or "")[1]
        found = self._in_files(text_rows, say)
        if part is None:
            yield from found
        else:
            count = sum(1 for _ in self._in_files(text_rows, lambda text: None)) if part.counts else 0
            yield from part.select(found, count)

    def _in_files(self, text_rows: str, say: Callable[[str], None]) -> Iterator[Found]:
        name = self.source.path
        if self.files[0].is_dir():
            if self.files[0] == local_path(name):  # and not a split in it
                self.wanted.require_whole(name)
            yield from numbered(_saved(self.source, self.files[0]), name)
        else:
            for file in self.files:
                called = name if len(self.files) == 1 else str(file)
                yield from read_file(file, called, text_rows, self.wanted, say)

    def sha256(self) -> str | None:
        """The SHA-256 of the files, if the source consists of files."""
        return sha256_of(files) if (files := self._contents()) else None

    def fingerprint(self) -> str | None:
        """The fingerprint of streamed files."""
        return fingerprint_of(files) if (files := self._contents()) else None

    def _contents(self) -> list[Path]:
        files = list(self.files)
        if files and is_saved(files[0]):
            files = sorted(files[0].glob("*.arrow"))  # not its state, which differs with each save
        return files


_OWN = "add them as a separate source"
_SPLIT = {"train": "train", "eval": "validation"}


def _beside(found: FoundFiles, name: str) -> Iterator[str]:
    for files, why in (
        (found.of_no_split, f"named after no split, as others there are; {_OWN}"),
        (found.unreadable, f"of another kind than {', '.join(KINDS)}"),
    ):
        if files:
            yield f"{name}: {listed([each.name for each in files])} not read: {why}"


def _saved_splits(path: Path, name: str) -> list[str] | None:
    """The splits of a folder that `save_to_disk` wrote; `None` if it has none, or is not one. Raises
    `DataError`."""
    if not (path / "dataset_dict.json").is_file():
        return None
    try:
        return [str(split) for split in json.loads((path / "dataset_dict.json").read_bytes())["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name} cannot be read as a folder of save_to_disk: {first_line(error)}") from error


def _saved(source: DataSource, path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder raises whatever its layers raise
        raise DataError(
            f"{source.path} cannot be read as a folder of save_to_disk: {first_line(error)}"
        ) from error


def _from_hub(source: DataSource, split: Split, *, streaming: bool) -> Iterator[Found]:
    place = source.path
    try:
        for place, row in numbered(_hub(source, split, streaming=streaming), source.path):
            yield place, row
    except DataError:
        raise
    except Exception as error:  # a stream is fetched while it is read, and its client may raise anything
        raise DataError(f"after {place} the hub could not be read: {first_line(error)}") from error


def _hub(source: DataSource, split: Split, *, streaming: bool) -> Any:
    import datasets

    wanted = source.split or _SPLIT[split]
    part = None
    if streaming:  # `datasets` selects no part of a stream
        name, part = Slice.of(wanted)
        if part is not None and part.counts:
            raise DataError(
                f"{source.path}: split = {wanted!r} needs the number of rows, which is unknown for a stream "
                "from the hub; select rows from the start, as in train[:1000]."
            )
        wanted = name
    try:
        found = datasets.load_dataset(
            source.path, name=source.subset, split=wanted, revision=source.revision, streaming=streaming
        )
        return found if part is None else part.select(found, 0)
    except Exception as error:  # the hub's client raises whatever its layers raise
        raise DataError(
            f"{source.path} is no file here, and cannot be fetched from the hub (split {wanted}): "
            f"{first_line(error)}"
        ) from error
