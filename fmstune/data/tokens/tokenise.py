"""All rows of a source as tokens: the first of them here, many in processes beside this one."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from itertools import islice

from fmstune.console import moved
from fmstune.data.rows.reader import Reader
from fmstune.data.tokens.table import Encoder, Piece, Tokenised, joined, piece_of
from fmstune.data.tokens.workers import CHUNK, in_workers
from fmstune.system.threads import processors

_ALONE_SECONDS = 0.25
"""What takes no longer is done here: to start workers costs a fifth of that."""
_OBJECTS = 200_000


def tokenise(reader: Reader, encoder: Encoder) -> Tokenised:
    """Tokenise all rows of a source, at the cost of four bytes of memory for a token and its label each. The
    result does not depend on how many processes take part.

    Raises `DataError`, also when there are no rows, and `RunError` when a process that takes part is killed.
    """
    pieces: list[Piece] = []
    count = 0
    with _few_collections():
        for piece in _pieces(reader, encoder):
            pieces.append(piece)
            count += len(piece.places)
            moved(count)
    if not count:
        raise reader.no_rows()
    return joined(pieces, reader)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Python looks for objects that hold one another whenever there are some 700 more of them, and at times
    through all that was ever imported. Rows are thousands of objects, of which none hold one another: without
    this a quarter of the time goes there, here and in the processes beside this one."""
    before = gc.get_threshold()
    if before[0]:  # else whoever calls wants none at all
        gc.set_threshold(max(before[0], _OBJECTS), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _pieces(reader: Reader, encoder: Encoder) -> Iterator[Piece]:
    if reader.handled or (reader.most is not None and reader.bad.skip):
        # A handler may count its calls; and how many rows are enough shows when all before were read.
        rows = encoder.rows(reader)
        while part := list(islice(rows, CHUNK)):
            yield piece_of(part, reader, encoder)
        return
    found = islice(reader.found(), reader.most)
    began, workers = time.monotonic(), processors().count
    while chunk := list(islice(found, CHUNK)):
        own = reader.of(chunk)
        part = list(encoder.rows(own))
        reader.recognised = own.recognised
        reader.take(own)
        if part:
            yield piece_of(part, reader, encoder)
        if workers > 1 and reader.recognised is not None and time.monotonic() - began > _ALONE_SECONDS:
            yield from in_workers(found, reader, encoder, workers)
