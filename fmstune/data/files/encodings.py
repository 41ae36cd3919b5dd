"""Decode text files: as UTF-8, UTF-16 or UTF-32, or in the encoding of older Windows versions."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fmstune.data.files.opening import opened
from fmstune.errors import DataError

OLDER = "cp1252"
_PIECE = 1 << 20
_UNLIKELY = frozenset(b"\x81\x8d\x8f\x90\x9d\xff")
"""Bytes that no Windows-1252 text has: five without a meaning, and one that usually is damage."""

_DIFFERENT = 3
_RUN = re.compile(r"[^\x00-\x7f]{4,}")
"""Western words have an occasional accent outside ASCII; those of other scripts consist of nothing else (some
pairs of their bytes are UTF-8 by chance). Punctuation comes together, too: up to three, or equal ones."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file that messages call `name`, with its encoding."""

    path: Path
    name: str
    encoding: str

    @classmethod
    def of(cls, path: Path, name: str, say: Callable[[str], None], most: int) -> TextFile:
        """The file; its first `most` bytes show its encoding; `say` receives the name of an older one. Bytes
        that are not text at all, or damaged UTF-8, are left for the reader to report by line. Raises
        `DataError`."""
        encoding = encoding_of(path, name, most=most)
        if encoding == OLDER:
            report_old_encoding(name, say)
        return cls(path, name, encoding)

    @contextlib.contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Its bytes as UTF-8. Raises `DataError`, also while it is open."""
        with opened(self.path, self.name) as file:
            if self.encoding == "utf-8":
                yield file
            else:
                yield io.BufferedReader(_Recoded(decoded(file, self.encoding), self), _PIECE)


def report_old_encoding(name: str, say: Callable[[str], None]) -> None:
    """Report that a file is in an older encoding."""
    say(f"{name} is not UTF-8 text; it is read as Windows-1252 (Latin-1)")


def wrong_encoding(name: str, encoding: str) -> DataError:
    """The error for a file that does not keep to the encoding of its beginning."""
    called = encoding.upper().removesuffix("-SIG")[:6].rstrip("-")
    return DataError(f"{name} begins as {called} text and continues as something else; save it as UTF-8.")


def encoding_of(path: Path, name: str, *, most: int | None = None) -> str:
    """The encoding of a file: UTF-8 unless its beginning, or invalid UTF-8 in its first `most` bytes
    (`None`: in all of them, each of which is then decoded in some way), shows another."""
    with opened(path, name) as file:
        wide = json.detect_encoding(file.read(4))  # by its mark, or by the zero bytes of ASCII
    if not wide.startswith("utf-8"):
        return wide
    try:
        for _ in _texts(path, name, most, "strict"):
            pass
    except UnicodeDecodeError:
        letters: Counter[str] = Counter()
        together = 0
        for text in _texts(path, name, most, "surrogateescape"):
            letters.update(text)
            together += sum(
                sum("\udc80" <= letter <= "\udcff" for letter in run)
                for run in _RUN.findall(text)
                if len(set(run)) >= _DIFFERENT
            )
        bad = {letter: times for letter, times in letters.items() if "\udc80" <= letter <= "\udcff"}
        unlikely = most is not None and any(ord(letter) - 0xDC00 in _UNLIKELY for letter in bad)
        others = sum(times for letter, times in letters.items() if letter > "\x7f" and letter not in bad)
        # Windows-1252 bytes are hardly ever UTF-8 characters: if most are, the others are damaged.
        if sum(bad.values()) > others and not unlikely:
            if together > sum(bad.values()) / 2:
                raise DataError(
                    f"{name} is not UTF-8 text, and does not look like Windows-1252 (Latin-1) either: it may "
                    "be Cyrillic, Greek, Chinese or Japanese in an older encoding; save it as UTF-8."
                ) from None
            return OLDER
    return "utf-8"


def _texts(path: Path, name: str, most: int | None, errors: str) -> Iterator[str]:
    """The first `most` bytes of a file as UTF-8, piece by piece."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    with opened(path, name) as file:
        read = 0
        while (most is None or read < most) and (piece := file.read(_PIECE)):
            read += len(piece)
            yield decoder.decode(piece)
        yield decoder.decode(b"", final=most is None or read < most)


def decoded(file: IO[bytes], encoding: str) -> io.TextIOWrapper:
    """A file's text, with its own line endings."""
    # Windows-1252 leaves five bytes undefined; browsers decode them as Latin-1's control characters.
    errors = "fmstune-latin-1" if encoding == OLDER else "strict"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")


class _Recoded(io.RawIOBase):
    """A text as UTF-8 bytes."""

    def __init__(self, text: io.TextIOWrapper, of: TextFile) -> None:
        self._text, self._of, self._rest = text, of, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        wanted = memoryview(buffer)
        if not self._rest:
            try:
                self._rest = self._text.read(_PIECE).encode()
            except UnicodeError:
                raise wrong_encoding(self._of.name, self._of.encoding) from None
        part, self._rest = self._rest[: len(wanted)], self._rest[len(wanted) :]
        wanted[: len(part)] = part
        return len(part)


def _as_latin_1(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("fmstune-latin-1", _as_latin_1)
