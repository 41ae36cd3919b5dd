"""Read JSON value by value: only a piece of a large file is in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

_PIECE = 1 << 20
_TAIL = 16
"""An error this close to the end of the buffer may be caused by the end: `tru`, or half an escape."""
_BLANKS = " \t\n\r"


class BadArray(ValueError):
    """Not an array of JSON values; has the line and column of the first wrong character."""


class Decoder:
    """Like Python's decoder, but reports a key with two values, of which that silently keeps the last."""

    def __init__(self) -> None:
        self._duplicate_key: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str, at: int) -> tuple[Any, int]:
        """The value that starts at a position of a text, and its end. Raises `JSONDecodeError`, and
        `ValueError` or `RecursionError` for what Python cannot represent."""
        return self._decoder.raw_decode(text, at)

    def duplicate_key(self) -> str | None:
        """The key that the last value had twice with different values, if any; reported once."""
        found, self._duplicate_key = self._duplicate_key, None
        return found

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            self._duplicate_key = next(
                (key for key, value in pairs if made[key] != value), self._duplicate_key
            )
        return made


def values(file: IO[bytes], piece: int = _PIECE) -> Iterator[Any]:
    """The values of an array, read `piece` bytes at a time.

    Raises `BadArray`, also after the first values, and `UnicodeDecodeError`.
    """
    text = JsonText(file, piece)
    yield from text.items()
    if text.next():
        raise text.wrong("Extra data", text.at)


class JsonText:
    """The part of a file that has been read and not yet consumed: `buffer` from `at` on.

    Raises `BadArray` for invalid JSON, and `UnicodeDecodeError`.
    """

    def __init__(self, file: IO[bytes], piece: int = _PIECE) -> None:
        self.buffer, self.at = "", 0
        self.decoder = Decoder()
        self._file, self._piece = file, piece
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._all_read = False
        self._lines, self._column = 0, 0  # before the buffer

    def next(self) -> str:
        """The next non-blank character; empty at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in _BLANKS:
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Consume a character that `next` has returned."""
        self.at += len(character)

    def expect(self, character: str, otherwise: str) -> None:
        """Consume this character; anything else is an error with the reason `otherwise`."""
        if self.next() != character:
            raise self.wrong(otherwise, self.at)
        self.take(character)

    def items(self) -> Iterator[Any]:
        """The values of the array that starts here."""
        self.expect("[", "Expecting value")
        if self.next() == "]":
            self.take("]")
            return
        yield self.value()
        while self.next() != "]":
            self.expect(",", "Expecting ',' delimiter")
            yield self.value()
        self.take("]")

    def object_keys(self) -> Iterator[str]:
        """The keys of the object that starts here; each value must be consumed before the next key."""
        self.expect("{", "Expecting value")
        more = self.next() != "}"
        while more:
            if self.next() != '"':
                raise self.wrong("Expecting property name enclosed in double quotes", self.at)
            key = self.value()
            self.expect(":", "Expecting ':' delimiter")
            yield key
            more = self.next() == ","
            if more:
                self.take(",")
        self.expect("}", "Expecting ',' delimiter")

    def value(self) -> Any:
        """The next value."""
        self.next()
        while True:
            try:
                found, end = self.decoder.decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                ended = error.msg.startswith("Unterminated string") or error.pos > len(self.buffer) - _TAIL
                if ended and self._more():
                    continue
                raise self.wrong(error.msg, error.pos) from None
            except RecursionError:
                raise self.wrong("it is nested too deeply", self.at) from None
            except ValueError as error:  # a number with more digits than Python accepts
                raise self.wrong(str(error).partition(";")[0], self.at) from None
            # A number near the end of the buffer may continue after it.
            if end < len(self.buffer) - _TAIL or not self._more():
                self.at = end
                return found

    def wrong(self, what: str, position: int) -> BadArray:
        """The error at a position of the buffer."""
        before = self.buffer[:position]
        line = self._lines + before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1) + (0 if "\n" in before else self._column) + 1
        return BadArray(f"{what}: line {line} column {column}")

    def _more(self) -> bool:
        """Read as much as is buffered, so that a long value is not parsed too often; False at the end."""
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
