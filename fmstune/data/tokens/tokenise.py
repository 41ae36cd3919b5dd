"""Tokenise all rows of a source: the first ones here, many more in worker processes."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import time
from collections.abc import Iterator
from itertools import islice

from fmstune.console import moved
from fmstune.data.rows.reader import Reader
from fmstune.data.tokens.table import Encoder, Piece, Tokenised, joined, piece_of
from fmstune.data.tokens.workers import CHUNK, in_workers
from fmstune.system.threads import processors

_ALONE_SECONDS = 0.25
"""Shorter work is done here: starting workers takes a fifth of this time."""
_OBJECTS = 200_000


def tokenise(reader: Reader, encoder: Encoder) -> Tokenised:
    """Tokenise all rows of a source, in four bytes of memory per token and four per label. The result does
    not depend on the number of processes.

    Raises `DataError`, also if there are no rows, and `RunError` if a worker process is killed.
    """
    pieces: list[Piece] = []
    count = 0
    with _rare_garbage_collection():
        for piece in _pieces(reader, encoder):
            pieces.append(piece)
            count += len(piece.places)
            moved(count)
    if not count:
        raise reader.no_rows()
    return joined(pieces, reader)


@contextlib.contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Collect garbage less often. Python searches for reference cycles after every 700 or so new objects,
    at times through everything ever imported. Rows are thousands of objects without cycles: otherwise the
    search takes a quarter of the time, here and in the workers."""
    before = gc.get_threshold()
    if before[0]:  # else the caller has turned it off
        gc.set_threshold(max(before[0], _OBJECTS), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _pieces(reader: Reader, encoder: Encoder) -> Iterator[Piece]:
    if reader.handled or (reader.most is not None and reader.bad.skip):
        # A handler may count its calls; if bad rows are skipped, the limit depends on all rows before it.
        rows = encoder.rows(reader)
        while part := list(islice(rows, CHUNK)):
            yield piece_of(part, reader, encoder)
        return
    found = islice(reader.found(), reader.most)
    # A worker of `multiprocessing.Pool` is a daemon, which may start none.
    workers = 1 if multiprocessing.current_process().daemon else processors().count
    began = time.monotonic()
    while chunk := list(islice(found, CHUNK)):
        own = reader.of(chunk)
        part = list(encoder.rows(own))
        reader.recognised = own.recognised
        reader.merge_counts(own)
        if part:
            yield piece_of(part, reader, encoder)
        if workers > 1 and reader.recognised is not None and time.monotonic() - began > _ALONE_SECONDS:
            yield from in_workers(found, reader, encoder, workers)
