"""Open files, also compressed ones, as bytes that are read piece by piece."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from fmstune.access import reason
from fmstune.errors import DataError

_PIECE = 1 << 20
_WHOLE = 256 << 20
"""The most bytes read of a stream's files to identify them; this takes a second."""
_SAMPLE = 64 << 10


@contextlib.contextmanager
def opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file called `name` in messages.

    Raises `DataError`, also while it is open: only then a compressed file turns out to be truncated.
    """
    import pyarrow  # zstandard is not in Python before 3.14, and pyarrow comes with `datasets`

    try:
        with _unpacked(path) as file:
            yield file
    except PermissionError as error:
        raise DataError(f"{name} cannot be read: {reason(error, path)}.") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        said = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "it is damaged")
        raise DataError(f"{name} cannot be read: {said.rstrip('.')}.") from None


def _unpacked(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".bz2":
        return bz2.open(path, "rb")
    if suffix == ".xz":
        return lzma.open(path, "rb")
    if suffix == ".zst":
        return _zstandard(path)
    return path.open("rb")


@contextlib.contextmanager
def _zstandard(path: Path) -> Iterator[IO[bytes]]:
    import io

    import pyarrow

    with pyarrow.input_stream(str(path), compression="zstd") as packed:
        yield cast(Any, io.BufferedReader(packed, _PIECE))


def sha256_of(paths: list[Path]) -> str:
    """The SHA-256 of a file; for several, that of their SHA-256s in order."""
    digests = [_sha256(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def fingerprint_of(paths: list[Path]) -> str:
    """Identify the files of a stream, which may be too large to be read twice: a SHA-256 of their sizes and
    contents; of large ones, of pieces at regular distances. Raises `DataError`."""
    found = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                found.update(f"{size} ".encode())
                count = max(2, _WHOLE // _SAMPLE // len(paths))
                step = max(_SAMPLE, -(-size // count))
                for place in [*range(0, size, step), max(0, size - _SAMPLE)]:
                    file.seek(place)
                    found.update(file.read(_SAMPLE))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {reason(error, path)}.") from None
    return found.hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error, path)}.") from None
    return digest.hexdigest()
