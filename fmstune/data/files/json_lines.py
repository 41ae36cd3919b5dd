"""JSON lines: one object per line, as it should be, objects over several lines, or several per line."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

from fmstune.data.files.json_array import Decoder
from fmstune.errors import DataError

_BOM = b"\xef\xbb\xbf"
_BLANKS = " \t\r\n"

Placed = tuple[str, Any]
"""Where a value starts, like `train.jsonl line 17`, and the value, or a `DataError` in its place."""
Numbered = tuple[int, bytes]


def json_lines(file: IO[bytes], name: str) -> Iterator[Placed]:
    """The values of a file that messages call `name`. A damaged line is reported, and reading continues."""
    return _Lines(file, name).values()


class _Lines:
    def __init__(self, file: IO[bytes], name: str) -> None:
        # Lines of bytes: JSON may contain other line separators, such as U+2028, within a line.
        self._numbered: Iterator[Numbered] = enumerate(file, 1)
        self._waiting: deque[Numbered] = deque()
        self._name = name
        self._decoder = Decoder()
        self._skipping = False

    def values(self) -> Iterator[Placed]:
        while (line := self._next()) is not None:
            number, raw = line
            self._skipping = self._skipping and not raw.startswith(b"{")
            if self._skipping or not raw.strip():
                continue
            place = f"{self._name} line {number}"
            try:
                found = self._values_of(number, _text(raw, place))
            except _Bad as error:
                self._waiting.extendleft(reversed(error.lines))
                # In a file with indented objects, the next lines belong to it, up to the next object.
                self._skipping = raw.strip() == b"{"
                yield place, error.at(place)
            except DataError as error:
                yield place, error
            else:
                yield from ((place, value) for value in found)

    def _next(self) -> Numbered | None:
        if self._waiting:
            return self._waiting.popleft()
        number, raw = next(self._numbered, (0, b""))
        # Also in the middle, where files with one were joined.
        return (number, raw.removeprefix(_BOM)) if number else None

    def _values_of(self, number: int, text: str) -> list[Any]:
        """The values that start in a line; the last may end in a later one."""
        found: list[Any] = []
        at = 0
        while True:
            while at < len(text) and (text[at] in _BLANKS or (found and text[at] == ",")):
                at += 1  # with a comma after each value, it is an array without its brackets
            if at == len(text):
                return found
            try:
                value, at = self._decoder.decode(text, at)
            except json.JSONDecodeError as error:
                if found and error.pos == at:
                    error = json.JSONDecodeError("Extra data", text, at)
                if text[error.pos :].strip():
                    raise _Bad(error.msg, number + error.lineno - 1, error.colno) from None
                number, text = self._longer(number, text[at:])
                value, at = self._decoder.decode(text, 0)
            except RecursionError:
                raise _Bad("it is nested too deeply") from None
            except ValueError as error:
                raise _Bad(str(error).partition(";")[0]) from None
            key = self._decoder.duplicate_key()
            found.append(value if key is None else duplicate_key_error(key, f"{self._name} line {number}"))

    def _longer(self, number: int, text: str) -> tuple[int, str]:
        """The text with as many of the following lines as its first value takes, and its last line's number.

        The lines are read in growing pieces, so that a long value is not parsed too often; surplus lines are
        buffered.
        """
        taken: list[Numbered] = []
        pieces = [text]
        while True:
            wanted = sum(map(len, pieces))
            while wanted > 0 and (line := self._next()) is not None:
                taken.append(line)
                pieces.append(_text(line[1], f"{self._name} line {line[0]}", taken))
                wanted -= len(pieces[-1])
            whole = "".join(pieces)
            try:
                _, end = self._decoder.decode(whole, 0)
            except json.JSONDecodeError as again:
                at_its_end = not whole[again.pos :].strip()
                if at_its_end and wanted <= 0:
                    continue
                raise _Bad(again.msg, number + again.lineno - 1, again.colno, taken) from None
            except (RecursionError, ValueError) as again:
                raise _Bad(str(again).partition(";")[0], number, 1, taken) from None
            self._decoder.duplicate_key()
            needed, length = 0, len(pieces[0])
            while length < end:
                needed += 1
                length += len(pieces[needed])
            self._waiting.extendleft(reversed(taken[needed:]))
            return number, whole[:length]


class _Bad(Exception):
    """The error in a line, and the lines after it that were parsed with it."""

    def __init__(
        self, what: str, line: int = 1, column: int = 0, lines: list[Numbered] | None = None
    ) -> None:
        self.where = f": line {line} column {column}" if column else ""
        self.what, self.lines = what, lines or []

    def at(self, place: str) -> DataError:
        return DataError(f"{place}: this is not valid JSON ({self.what}{self.where}).")


def _text(raw: bytes, place: str, taken: list[Numbered] | None = None) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        if taken is not None:
            raise _Bad("it is not UTF-8 text", lines=taken) from None
        raise not_utf8_error(place) from None


def not_utf8_error(place: str) -> DataError:
    """The error for bytes that are not text."""
    return DataError(f"{place}: this is not UTF-8 text; save the file as UTF-8.")


def duplicate_key_error(key: str, place: str) -> DataError:
    """The error for an object with a duplicate key, of which JSON parsers keep the last."""
    return DataError(f"{place}: it has the key `{key}` twice, with different values; remove one.")
