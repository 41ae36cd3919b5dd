"""The tokenised rows of a source as an Arrow table, with facts about each row."""

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
"""The label of a token that is not trained, as in `torch.nn.functional.cross_entropy`."""
LOSS_WEIGHTS = "loss_weights"
"""The column of token weights in the loss, only for data with weights other than 0 and 1."""
WEIGHTS = pa.list_(pa.float32())
MARGIN = "margin"
"""The column of a reward model's margins, only for data that have some. Without one, a pair's is 0."""

_OF_ROWS = ("length", "longest", "trained", "cut", "part", "parts", "same", "reworded")
FACTS = (*_OF_ROWS, "hashes")
"""The facts about each row, eight bytes each."""
_BATCH = 512

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row as tokens, in the form that its method trains on, with its origin.

    `columns` are those of the table, with `LOSS_WEIGHTS` unless all are 0 or 1. `length` is its number of
    tokens after cutting to the maximum length, with the prompt counted once per answer; `longest` that of its
    longest sequence; `trained` that of tokens in the loss, 0 if all were cut off; `cut`: whether it was
    longer.
    """

    place: str
    columns: Mapping[str, Any]
    length: int
    longest: int
    trained: int
    cut: bool
    part: int = 1
    """Its number among the `parts` of a conversation that was split."""
    parts: int = 1
    same: bool = False
    """Whether it is a pair of answers that do not differ."""
    reworded: bool = False
    """Whether the last tokens of its prompt change when an answer follows."""


class Encoder(Protocol):
    """Tokenises rows for one training method."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""

    @property
    def max_length(self) -> int | None:
        """The maximum number of tokens of a trained sequence; `None` for no limit."""

    def schema(self, recognised: Recognised) -> pa.Schema:
        """The columns for a source of this shape."""

    def rows(self, reader: Reader, batch: int = _BATCH) -> Iterator[TokenRow]:
        """Tokenise the rows of a source in batches. Raises `DataError`."""


def batches(reader: Reader, size: int) -> Iterator[list[Placed]]:
    """The rows of a source in batches of `size`, with which fast tokenizers are fastest."""
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
    """The rows of one source. The arrays have an entry for each row that was read. `index` is the row's
    position in `table`, or -1 if it has no trained tokens left and is not in `table`."""

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
        """The name of the source."""
        return self.reader.source.path

    @property
    def shape(self) -> str:
        """The name of the shape of its rows."""
        return self.reader.recognised.name if self.reader.recognised else ""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def margins(self) -> bool:
        """Whether its pairs have margins."""
        return MARGIN in self.table.column_names

    @property
    def weighted(self) -> bool:
        """Whether its tokens have weights in the loss other than 0 and 1."""
        return LOSS_WEIGHTS in self.table.column_names

    def dataset(
        self, numbers: Integers, *, weighted: bool = False, margins: bool = False
    ) -> datasets.Dataset:
        """A data set of those of the rows with these indices that are in the table; `weighted` adds weights
        of 1 if there are none, for a mixture with weighted rows, and `margins` margins of 0."""
        kept = self.index[numbers]
        table = _with_weights(self.table) if weighted else self.table
        if margins and not self.margins:
            table = table.append_column(MARGIN, pa.array(np.zeros(len(table), dtype=np.float32)))
        # Its own fingerprint would copy the whole table twice.
        found = hashlib.sha256(self.hashes.tobytes() + self.trained.tobytes())
        for piece in table[LOSS_WEIGHTS].chunks if LOSS_WEIGHTS in table.column_names else ():
            found.update(piece.values.to_numpy())
        whole = datasets.Dataset(table_in_memory(table), fingerprint=found.hexdigest()[:16])
        return whole.select(kept[kept >= 0])


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a source: `table` has those with trained tokens, `facts` an entry for each row that
    was read, by the names of `TokenRow`."""

    table: pa.RecordBatch
    facts: dict[str, array[int]]
    places: list[str]


def piece_of(rows: Iterable[TokenRow], reader: Reader, encoder: Encoder) -> Piece:
    """Create a piece of the rows. There must be at least one, or the shape must be known."""
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
    assert reader.recognised is not None  # set by the first row
    return Piece(_batch(kept, encoder.schema(reader.recognised)), facts, places)


def joined(pieces: Sequence[Piece], reader: Reader) -> Tokenised:
    """Concatenate the rows of all pieces."""
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
    """A hash to find duplicate rows. It ignores labels and weights, except whether an answer is good."""
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
    # Same result as pyarrow's own conversion of lists, in two thirds of the time.
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
