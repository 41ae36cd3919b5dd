"""Training data that are read while the model is trained, for what does not fit into memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import datasets

from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.data.rows.unused import NotUsed
from fmstune.data.summary import DataSummary, SourceSummary, joined
from fmstune.data.tokens.table import Encoder
from fmstune.errors import DataError

_BATCH = 64
_LOOKED_AT = 100
"""So many rows are looked at beforehand for what is not used of them."""


def stream(
    readers: Sequence[Reader], encoder: Encoder, seed: int, buffer: int
) -> tuple[datasets.IterableDataset, DataSummary]:
    """An endless data set over the rows of all sources, and what can be said of it beforehand.

    Each source begins again when it ends, so that a resumed run finds its place by counting rows. Of sources
    with weights each next row is drawn with these probabilities; without weights the sources follow one
    another. Rows then wait in a buffer of `buffer` rows, of which the next one is drawn. All of it is the
    same for the same `seed`. The first rows are read here already; raises `DataError` for what is wrong
    with them, and later, from the data set, that of any other row.
    """
    unused = tuple(entry for reader in readers for entry in _read_first(reader, encoder))
    weights = [reader.source.weight for reader in readers]
    given = [weight for weight in weights if weight is not None]
    if len(readers) > 1 and len(given) == len(readers):
        endless = [_dataset([reader], encoder) for reader in readers]
        chances = [weight / sum(given) for weight in given]
        mixed = datasets.interleave_datasets(endless, probabilities=chances, seed=seed)
    else:
        mixed = _dataset(readers, encoder)
    sources = tuple(
        SourceSummary(reader.source.path, _shape(reader), 0, weight=reader.source.weight)
        for reader in readers
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
        streaming=True,
        sources=sources if len(sources) > 1 else (),
        unused=unused,
    )
    return mixed.shuffle(seed=seed, buffer_size=buffer), summary


def _read_first(reader: Reader, encoder: Encoder) -> tuple[NotUsed, ...]:
    """Read until the first row of which something is trained, and some more, so that what is wrong is told at
    the start; what of these rows is not used."""
    looking = replace(reader, bad=BadRows(reader.bad.skip))
    rows = encoder.rows(looking, batch=1)
    if not any(row.trained for row in rows):
        raise _nothing(looking, encoder)
    deque(islice(rows, _LOOKED_AT), maxlen=0)
    reader.recognised = looking.recognised
    return looking.unused.entries()


def _nothing(reader: Reader, encoder: Encoder) -> DataError:
    if reader.recognised is None or reader.bad.first:
        return reader.no_rows()
    return DataError(
        f"{reader.source.path}: none of its rows has a token to train on once they are cut to "
        f"training.max_length = {encoder.max_length} tokens; raise training.max_length."
    )


def _shape(reader: Reader) -> str:
    return reader.recognised.name if reader.recognised else ""


class StreamError(DataError):
    """A bad row of a stream. In a worker of the data loader torch makes another of it, of its traceback as
    a text, which ends with the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass
class _Endless:
    """A generator of the rows of some sources, again and again; bad ones are listed the first time only."""

    readers: Sequence[Reader]
    encoder: Encoder

    def __call__(self) -> Iterator[Mapping[str, Any]]:
        try:
            while True:
                yield from self._once()
        except DataError as error:
            raise StreamError(str(error)) from None

    def _once(self) -> Iterator[Mapping[str, Any]]:
        for reader in self.readers:
            for row in self.encoder.rows(reader, batch=_BATCH):
                if row.trained:
                    yield row.columns
            reader.bad = BadRows(reader.bad.skip)


def _dataset(readers: Sequence[Reader], encoder: Encoder) -> datasets.IterableDataset:
    recognised = readers[0].recognised
    assert recognised is not None  # by its first row, which has been read
    features = datasets.Features.from_arrow_schema(encoder.schema(recognised))
    return datasets.IterableDataset.from_generator(_Endless(readers, encoder), features=features)
