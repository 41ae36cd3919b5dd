"""The rows of a source as tokens, held as an Arrow table, with what is known of each row."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fmstune.tuning.labels import Labeller, TokenRow
from fmstune.tuning.rows import Reader

_PIECE = 1000
_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokenised:
    """The rows of one source. The arrays have an entry for each row that was read; those of which nothing
    trained is left are not in `table`, and `index` gives -1 for them, else the row's number there."""

    reader: Reader
    table: pa.Table
    index: Integers
    length: Integers
    trained: Integers
    cut: Integers
    hashes: Integers
    places: list[str]

    @property
    def source(self) -> str:
        """What the source is called."""
        return self.reader.source.path

    @property
    def shape(self) -> str:
        """What its rows are called."""
        return self.reader.recognised.name if self.reader.recognised else ""

    def __len__(self) -> int:
        return len(self.index)

    def dataset(self, numbers: Integers) -> datasets.Dataset:
        """A data set of the rows with these numbers, as far as something of them is left."""
        kept = self.index[numbers]
        # Its own way to a fingerprint copies the whole table, twice.
        fingerprint = hashlib.sha256(self.hashes.tobytes() + self.trained.tobytes()).hexdigest()
        whole = datasets.Dataset(datasets.table.InMemoryTable(self.table), fingerprint=fingerprint[:16])
        return whole.select(kept[kept >= 0])


def tokenise(reader: Reader, labeller: Labeller) -> Tokenised:
    """Tokenise all rows of a source, at the cost of eight bytes of memory for a token.

    Raises `DataError`, also when there are no rows.
    """
    index, length, trained, cut, hashes = (array("q") for _ in range(5))  # eight bytes each
    places: list[str] = []
    pieces: list[pa.RecordBatch] = []
    piece: list[TokenRow] = []
    kept = 0
    for row in labeller.rows(reader):
        places.append(row.place)
        index.append(kept if row.trained else -1)
        length.append(len(row.ids))
        trained.append(row.trained)
        cut.append(row.cut)
        hashes.append(hash(tuple(row.ids)))
        if row.trained:
            kept += 1
            piece.append(row)
        if len(piece) == _PIECE:
            pieces.append(_batch(piece))
            piece = []
    if not len(index):
        raise reader.no_rows()
    table = pa.Table.from_batches([*pieces, _batch(piece)], schema=_SCHEMA)
    return Tokenised(
        reader=reader,
        table=table,
        index=np.array(index, dtype=np.int64),
        length=np.array(length, dtype=np.int64),
        trained=np.array(trained, dtype=np.int64),
        cut=np.array(cut, dtype=np.int64),
        hashes=np.array(hashes, dtype=np.int64),
        places=places,
    )


def _batch(rows: Iterable[TokenRow]) -> pa.RecordBatch:
    rows = list(rows)
    columns: Sequence[list[list[int]]] = ([row.ids for row in rows], [row.labels for row in rows])
    return pa.RecordBatch.from_arrays([pa.array(c, _SCHEMA.field(0).type) for c in columns], schema=_SCHEMA)
