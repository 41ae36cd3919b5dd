"""The rows of a source as tokens, held as an Arrow table, with what is known of each row."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from fmstune.data.rows.reader import Placed, Reader
from fmstune.data.rows.shapes import Recognised
from fmstune.transformers_compat import table_in_memory

TOKENS = pa.list_(pa.int32())
"""The type of a column of tokens."""
IGNORED = -100
"""The label of a token that is not trained: that of `torch.nn.functional.cross_entropy`."""
LOSS_WEIGHTS = "loss_weights"
"""The column of the weights of tokens in the loss, which only data with weights other than 0 and 1 have."""
WEIGHTS = pa.list_(pa.float32())

_OF_ROWS = ("length", "longest", "trained", "cut", "part", "parts", "same", "reworded")
FACTS = (*_OF_ROWS, "hashes")
"""What is known of each row, eight bytes each."""
_BATCH = 512

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row as tokens, with the place that it is from, as its method is trained on it.

    `columns` are those of the table, with `LOSS_WEIGHTS` where they are not all 0 and 1. `length` counts its
    tokens, cut to the greatest length, with a prompt once for each of its answers; `longest` those of its
    longest sequence; `trained` those that the loss counts, none where all of them were cut off. `cut` says
    whether it was longer.
    """

    place: str
    columns: Mapping[str, Any]
    length: int
    longest: int
    trained: int
    cut: bool
    part: int = 1
    """Which one of the `parts` it is that a conversation was split into."""
    parts: int = 1
    same: bool = False
    """Whether it is a pair of answers that do not differ."""
    reworded: bool = False
    """Whether its prompt ends in other tokens once an answer follows it."""


class Encoder(Protocol):
    """What makes tokens of rows, as one method of training needs them."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""

    @property
    def max_length(self) -> int | None:
        """The most tokens that a sequence is trained on; `None` for all."""

    def schema(self, recognised: Recognised) -> pa.Schema:
        """The columns of the rows of a source of this shape."""

    def rows(self, reader: Reader, batch: int = _BATCH) -> Iterator[TokenRow]:
        """The rows of a source, tokenised a batch at a time. Raises `DataError`."""


def batches(reader: Reader, size: int) -> Iterator[list[Placed]]:
    """The rows of a source, so many at a time, as the fast tokenizers are fastest."""
    part: list[Placed] = []
    for placed in reader:
        part.append(placed)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


@dataclass(frozen=True, slots=True)
class Tokenised:
    """The rows of one source. The arrays have an entry for each row that was read; those of which nothing
    trained is left are not in `table`, and `index` gives -1 for them, else the row's number there."""

    reader: Reader
    table: pa.Table
    index: Integers
    length: Integers
    longest: Integers
    trained: Integers
    cut: Integers
    part: Integers
    parts: Integers
    same: Integers
    reworded: Integers
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

    @property
    def weighted(self) -> bool:
        """Whether its tokens have weights in the loss other than 0 and 1."""
        return LOSS_WEIGHTS in self.table.column_names

    def dataset(self, numbers: Integers, *, weighted: bool = False) -> datasets.Dataset:
        """A data set of the rows with these numbers, as far as something of them is left; `weighted` adds
        weights of 1 where there are none, for a mixture with rows that have some."""
        kept = self.index[numbers]
        table = _with_weights(self.table) if weighted else self.table
        # Its own way to a fingerprint copies the whole table, twice.
        found = hashlib.sha256(self.hashes.tobytes() + self.trained.tobytes())
        for piece in table[LOSS_WEIGHTS].chunks if LOSS_WEIGHTS in table.column_names else ():
            found.update(piece.values.to_numpy())
        whole = datasets.Dataset(table_in_memory(table), fingerprint=found.hexdigest()[:16])
        return whole.select(kept[kept >= 0])


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a source in their order: those of which something is trained in `table`, and of each that
    was read the `facts`, by the names of `TokenRow`."""

    table: pa.RecordBatch
    facts: dict[str, array[int]]
    places: list[str]


def piece_of(rows: Iterable[TokenRow], reader: Reader, encoder: Encoder) -> Piece:
    """A piece of the rows, which are at least one or of a shape that is known."""
    facts = {name: array("q") for name in FACTS}
    hashes = facts["hashes"]
    places: list[str] = []
    kept: list[TokenRow] = []
    for row in rows:
        places.append(row.place)
        for name in _OF_ROWS:
            facts[name].append(getattr(row, name))
        hashes.append(_hash(row))
        if row.trained:
            kept.append(row)
    assert reader.recognised is not None  # by the first row
    return Piece(_batch(kept, encoder.schema(reader.recognised)), facts, places)


def joined(pieces: Sequence[Piece], reader: Reader) -> Tokenised:
    """The rows of all pieces, one after another."""
    tables = [pa.Table.from_batches([piece.table]) for piece in pieces]
    if any(LOSS_WEIGHTS in each.column_names for each in tables):
        tables = [_with_weights(each) for each in tables]
    facts = {
        name: np.concatenate([np.array(piece.facts[name], dtype=np.int64) for piece in pieces])
        for name in FACTS
    }
    kept = facts["trained"] > 0
    return Tokenised(
        reader=reader,
        table=pa.concat_tables(tables),
        index=np.where(kept, np.cumsum(kept) - 1, -1),
        places=[place for piece in pieces for place in piece.places],
        **facts,
    )


def _hash(row: TokenRow) -> int:
    """By which rows are the same; labels and weights do not count, but for whether an answer is a good
    one."""
    values = (value for name, value in row.columns.items() if name not in ("labels", LOSS_WEIGHTS))
    return hash(tuple(tuple(value) if isinstance(value, list) else value for value in values))


def _batch(rows: Iterable[TokenRow], schema: pa.Schema) -> pa.RecordBatch:
    rows = list(rows)
    columns = [_column([row.columns[field.name] for row in rows], field.type) for field in schema]
    if any(LOSS_WEIGHTS in row.columns for row in rows):
        schema = schema.append(pa.field(LOSS_WEIGHTS, WEIGHTS))
        given = [row.columns.get(LOSS_WEIGHTS) or [1.0] * len(row.columns["input_ids"]) for row in rows]
        columns.append(pa.array(given, WEIGHTS))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if kind != TOKENS or None in values:
        return pa.array(values, kind)
    # As pyarrow makes it of lists, in two thirds of the time.
    flat = array("i")
    for row in values:
        flat.fromlist(row)
    ends = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in values], out=ends[1:])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.frombuffer(flat, dtype=np.int32)))


def _with_weights(table: pa.Table) -> pa.Table:
    """The table with a weight of 1 for each token, if it has no weights."""
    if LOSS_WEIGHTS in table.column_names:
        return table
    lengths = pc.list_value_length(table["input_ids"]).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ones = pa.array(np.ones(int(offsets[-1]), dtype=np.float32))
    return table.append_column(pa.field(LOSS_WEIGHTS, WEIGHTS), pa.ListArray.from_arrays(offsets, ones))
