"""Tokenise rows in worker processes, while this one reads the rows and orders the results.

The workers are forked: they inherit the tokenizer and the chat template, and import nothing again. They use
neither torch nor the journal, whose threads and locks do not survive a fork. Threads would not help: half of
the time for a chat is spent in Python.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue

from fmstune.data.files.formats import Found
from fmstune.data.rows.bad_rows import BadRows
from fmstune.data.rows.reader import Reader
from fmstune.data.rows.unused import Unused
from fmstune.data.tokens.table import Encoder, Piece, piece_of
from fmstune.errors import DataError, RunError

CHUNK = 512
"""The number of rows that are tokenised at once."""
_MOST = 16
"""The most workers: this process reads the rows, and cannot keep more busy."""


@dataclass
class _Collected(BadRows):
    """Bad rows, collected for the process that counts them."""

    found: list[tuple[str, DataError]] = field(default_factory=list)

    def reject(self, place: str, error: DataError) -> None:
        if not self.skip:
            raise error
        self.found.append((place, error))


@dataclass(frozen=True, slots=True)
class _Done:
    """The result for a chunk of rows; `piece` is `None` if all are bad."""

    piece: Piece | None
    read: int
    unused: Unused
    bad: list[tuple[str, DataError]]


def in_workers(found: Iterator[Found], reader: Reader, encoder: Encoder, count: int) -> Iterator[Piece]:
    """Tokenise the remaining rows in `count` processes, in order. Remarks about them go to the reader. Raises
    `DataError`, and `RunError` for a process that was killed."""
    with _started(min(count, _MOST), reader, encoder) as workers, ThreadPoolExecutor(len(workers)) as pool:
        free: SimpleQueue[_Worker] = SimpleQueue()
        for worker in workers:
            free.put(worker)

        def done(chunk: list[Found]) -> _Done:
            worker = free.get()
            try:
                return worker.done(chunk)
            finally:
                free.put(worker)

        waiting: deque[Future[_Done]] = deque()
        try:
            while (chunk := list(islice(found, CHUNK))) or waiting:
                if chunk:
                    waiting.append(pool.submit(done, chunk))
                # Each worker has its next chunk queued, and no more are held in memory.
                if not chunk or len(waiting) >= 2 * len(workers):
                    each = waiting.popleft().result()
                    for place, error in each.bad:
                        reader.bad.reject(place, error)
                    reader.read += each.read
                    reader.unused.merge(each.unused)
                    if each.piece is not None:
                        yield each.piece
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection

    def done(self, chunk: list[Found]) -> _Done:
        try:
            self.connection.send(chunk)
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = (
                f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            )
            raise RunError(
                f"a process that prepares the data (pid {self.process.pid}) {how}; if the memory of this "
                "machine or container is full, data.streaming = true needs the least."
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, _Done)
        return answer


@contextlib.contextmanager
def _started(count: int, reader: Reader, encoder: Encoder) -> Iterator[list[_Worker]]:
    context = multiprocessing.get_context("fork")
    workers: list[_Worker] = []
    ends: list[Connection] = []
    try:
        for _ in range(count):
            here, there = context.Pipe()
            ends.append(here)
            process = context.Process(
                target=_work, args=(there, reader, encoder, list(ends)), name="fmstune-data", daemon=True
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks with threads
                process.start()
            there.close()
            workers.append(_Worker(process, here))
        yield workers
    finally:
        for end in ends:
            end.close()  # the workers wait for this
        for worker in workers:
            worker.process.terminate()
            worker.process.join()
            worker.process.close()


def _work(connection: Connection, reader: Reader, encoder: Encoder, ends: list[Connection]) -> None:
    """The main loop of a worker: rows in, tokens out, until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all: the parent ends this process
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    for end in ends:
        end.close()  # else no worker notices that the parent is gone
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(_answer(connection.recv(), reader, encoder))
    # Skips the parent's exit handlers and unflushed buffers, which this process has inherited.
    os._exit(0)


def _answer(chunk: list[Found], reader: Reader, encoder: Encoder) -> _Done | BaseException:
    own = reader.of(chunk)
    bad = own.bad = _Collected(reader.bad.skip)
    try:
        rows = list(encoder.rows(own))
        piece = piece_of(rows, own, encoder) if rows else None
    except DataError as error:
        return error
    except Exception:  # raised again in the parent, where it is visible
        return RuntimeError(f"in a process that prepares the data:\n{traceback.format_exc()}")
    return _Done(piece, own.read, own.unused, bad.found)
