"""A JSON file that is one array, read value by value: of a large file no more than a piece is in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

_PIECE = 1 << 20
_TAIL = 16
"""An error so near the end of what has been read may be due to the end: `tru`, or half an escape."""
_BLANKS = " \t\n\r"


class BadArray(ValueError):
    """What is no array of JSON values, with the line and column of the first wrong character."""


def values(file: IO[bytes], piece: int = _PIECE) -> Iterator[Any]:
    """The values of an array, read so many bytes at a time.

    Raises `BadArray`, also after the first values, and `UnicodeDecodeError`.
    """
    text = _Text(file, piece)
    text.expect("[", "Expecting value")
    if text.next() == "]":
        text.take("]")
    else:
        yield text.value()
        while text.next() != "]":
            text.expect(",", "Expecting ',' delimiter")
            yield text.value()
        text.take("]")
    if text.next():
        raise text.wrong("Extra data", text.at)


class _Text:
    """The part of a file that has been read and not been taken yet: `buffer` from `at` on."""

    def __init__(self, file: IO[bytes], piece: int) -> None:
        self.buffer, self.at = "", 0
        self._file, self._piece = file, piece
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._decoder = json.JSONDecoder()
        self._all_read = False
        self._lines, self._column = 0, 0  # before the buffer

    def next(self) -> str:
        """The next character that is not blank; none at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in _BLANKS:
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        self.at += len(character)

    def expect(self, character: str, otherwise: str) -> None:
        if self.next() != character:
            raise self.wrong(otherwise, self.at)
        self.take(character)

    def value(self) -> Any:
        """The next value."""
        self.next()
        while True:
            try:
                found, end = self._decoder.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                ended = error.msg.startswith("Unterminated string") or error.pos > len(self.buffer) - _TAIL
                if ended and self._more():
                    continue
                raise self.wrong(error.msg, error.pos) from None
            except RecursionError:
                raise self.wrong("it is nested too deeply", self.at) from None
            # A number near the end of the buffer may go on after it.
            if end < len(self.buffer) - _TAIL or not self._more():
                self.at = end
                return found

    def wrong(self, what: str, position: int) -> BadArray:
        before = self.buffer[:position]
        line = self._lines + before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1) + (0 if "\n" in before else self._column) + 1
        return BadArray(f"{what}: line {line} column {column}")

    def _more(self) -> bool:
        """Read as much again as is waiting, so that a long value is not tried too often; False at the end."""
        waiting = self.buffer[self.at :]
        read = b"" if self._all_read else self._file.read(max(self._piece, len(waiting)))
        if not read:
            self._all_read = True
            self._decode(b"", final=True)
            return False
        taken = self.buffer[: self.at]
        if "\n" in taken:
            self._lines += taken.count("\n")
            self._column = 0
        self._column += len(taken) - (taken.rfind("\n") + 1)
        self.buffer, self.at = waiting + self._decode(read), 0
        return True
