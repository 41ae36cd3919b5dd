"""Training data that are read during training, for data that do not fit into memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.data.rows.unused import NotUsed
from fmstune.data.stream_counts import Tally, counts_folder, write_counts
from fmstune.data.summary import DataSummary, SourceSummary, joined
from fmstune.data.tokens.table import LOSS_WEIGHTS, MARGIN, WEIGHTS, Encoder, TokenRow
from fmstune.errors import DataError
from fmstune.transformers_compat import streamed

_BATCH = 64
_WITHOUT = {MARGIN: 0.0}
"""The values of rows of sources without these columns."""
_LOOKED_AT = 100
"""The number of rows that are checked in advance for what is not used."""


def stream(
    readers: Sequence[Reader], encoder: Encoder, seed: int, buffer: int, run: Path | None = None
) -> tuple[datasets.IterableDataset, DataSummary]:
    """An endless data set over the rows of all sources, and what is known of it in advance.

    Each source starts again when it ends, so that a resumed run finds its position by counting rows. Rows
    wait in a buffer of `buffer` rows, from which the next one is drawn; at the end of a pass it is emptied,
    so that each pass has each row once. With weights, the source of each next row is drawn with these
    probabilities; without weights the sources follow one another. All of it is deterministic for a `seed`.
    The first rows are already read here; raises `DataError` for errors in them, and the data set later
    raises for any other row. What is not used in the rows is counted while they are read, in the directory
    `run` (see `stream_counts`).
    """
    folder = counts_folder(run)
    listed = readers[0].bad.file
    if listed is not None and folder is not None:
        with contextlib.suppress(OSError):  # then it cannot be written to either, which is reported
            listed.unlink(missing_ok=True)
    unused = tuple(entry for reader in readers for entry in _read_first(reader, encoder))
    schema = _schema(readers, encoder)
    weights = [reader.source.weight for reader in readers]
    given = [weight for weight in weights if weight is not None]
    if len(readers) > 1 and len(given) == len(readers):
        endless = [
            _dataset([reader], schema, encoder, _file(folder, number), _Shuffle(f"{seed} {number}", buffer))
            for number, reader in enumerate(readers)
        ]
        chances = [weight / sum(given) for weight in given]
        mixed = datasets.interleave_datasets(endless, probabilities=chances, seed=seed)
    else:
        mixed = _dataset(readers, schema, encoder, _file(folder, 0), _Shuffle(str(seed), buffer))
    prints = [reader.origin.fingerprint() for reader in readers]
    sources = tuple(
        SourceSummary(reader.source.path, _shape(reader), 0, weight=reader.source.weight, fingerprint=known)
        for reader, known in zip(readers, prints, strict=True)
    )
    summary = DataSummary(
        source=joined([reader.source.path for reader in readers]),
        shape=joined([_shape(reader) for reader in readers]),
        rows=0,
        tokens=0,
        trained_tokens=0,
        longest=0,
        truncated=0,
        dropped=0,
        fingerprint=prints[0] if len(prints) == 1 else None,
        streaming=True,
        sources=sources if len(sources) > 1 else (),
        unused=unused,
    )
    return mixed, summary


def _read_first(reader: Reader, encoder: Encoder) -> tuple[NotUsed, ...]:
    """Read until the first row with something to train on, and some more, so that errors are reported at the
    start; return what is not used of these rows."""
    looking = replace(reader, bad=BadRows(reader.bad.skip))
    tally = Tally((looking,), looking.bad)
    rows = encoder.rows(looking, batch=1)
    for row in rows:
        tally.add(0, row)
        if row.trained:
            break
    else:
        raise _nothing(looking, encoder, cut=tally.added > 0)
    for row in islice(rows, _LOOKED_AT):
        tally.add(0, row)
    reader.recognised = looking.recognised
    found = tally.counts()
    return (*found.unused, *found.lost)


def _nothing(reader: Reader, encoder: Encoder, *, cut: bool) -> DataError:
    if not cut or reader.bad.first:
        return reader.no_rows()
    return DataError(
        f"{reader.source.path}: none of its rows has a token to train on after truncation to "
        f"training.max_length = {encoder.max_length} tokens; raise training.max_length."
    )


def _shape(reader: Reader) -> str:
    return reader.recognised.name if reader.recognised else ""


class StreamError(DataError):
    """A bad row of a stream. A worker of the data loader re-raises it with its traceback as text, which ends
    with the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True, slots=True)
class _Shuffle:
    """The order of a stream's rows, different in each pass: `IterableDataset.shuffle` would mix the passes
    of an endless stream, and train on some rows twice before others were seen once."""

    seed: str
    buffer: int

    def of(self, rows: Iterable[Mapping[str, Any]], epoch: int) -> Iterator[Mapping[str, Any]]:
        """The rows of a pass, each once."""
        chance, held = random.Random(f"{self.seed} {epoch}"), list[Mapping[str, Any]]()
        for row in rows:
            if len(held) < self.buffer:
                held.append(row)
                continue
            place = chance.randrange(self.buffer)
            yield held[place]
            held[place] = row
        chance.shuffle(held)
        yield from held


@dataclass
class _Endless:
    """A generator that repeats the rows of some sources endlessly; bad ones are only listed in the first
    pass, and rows are only counted in the first pass, in `file`."""

    readers: Sequence[Reader]
    encoder: Encoder
    file: Path | None
    columns: Sequence[str]
    shuffle: _Shuffle

    def __call__(self) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self.shuffle.of(self._first(), 0)
            for epoch in count(1):
                yield from self.shuffle.of(self._again(), epoch)
        except DataError as error:
            raise StreamError(str(error)) from None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Endless:
        # `interleave_datasets` copies its data sets. Passes share nothing that they change, a compiled chat
        # template cannot be copied, and a copied tokenizer would only take memory.
        return self

    def _first(self) -> Iterator[Mapping[str, Any]]:
        # Separate readers: TRL reads a stream's first row, and the training starts again.
        bad = replace(self.readers[0].bad, count=0, first=[], known=None)
        readers = [replace(reader, bad=bad) for reader in self.readers]
        tally = Tally(readers, bad)
        for number, reader in enumerate(readers):
            rows = self.encoder.rows(reader, batch=_BATCH)
            # Rows are counted before the first of them is trained on.
            while part := list(islice(rows, _BATCH)):
                for row in part:
                    tally.add(number, row)
                self._write(tally)
                yield from (self._columns(row) for row in part if row.trained)
        tally.whole = True
        self._write(tally)

    def _again(self) -> Iterator[Mapping[str, Any]]:
        for each in self.readers:
            reader = replace(each, bad=BadRows(each.bad.skip))
            rows = self.encoder.rows(reader, batch=_BATCH)
            yield from (self._columns(row) for row in rows if row.trained)

    def _write(self, tally: Tally) -> None:
        if self.file is not None:
            write_counts(tally.counts(), self.file)

    def _columns(self, row: TokenRow) -> Mapping[str, Any]:
        return {name: row.columns.get(name, _WITHOUT.get(name)) for name in self.columns}


def _file(folder: Path | None, number: int) -> Path | None:
    return None if folder is None else folder / f"{number}.json"


def _schema(readers: Sequence[Reader], encoder: Encoder) -> pa.Schema:
    """The columns of the rows of all sources."""
    each = [encoder.schema(reader.recognised) for reader in readers if reader.recognised is not None]
    schema = pa.unify_schemas(each)
    if "labels" in schema.names:  # any row may have weights; a row without has a null
        schema = schema.append(pa.field(LOSS_WEIGHTS, WEIGHTS))
    return schema


def _dataset(
    readers: Sequence[Reader], schema: pa.Schema, encoder: Encoder, file: Path | None, shuffle: _Shuffle
) -> datasets.IterableDataset:
    features = datasets.Features.from_arrow_schema(schema)
    rows = _Endless(readers, encoder, file, schema.names, shuffle)
    made: datasets.IterableDataset = streamed(rows, features)
    return made
