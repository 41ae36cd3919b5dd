"""The framing of SwanLab's run files, as in LevelDB's log: blocks of records, each with its checksum.
Observed with SwanLab 0.10, whose files are of version 2."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

HEAD = struct.pack("<4sHB", b":SWL", 0xE1D6, 2)
_BLOCK, _FRAME = 32768, 7
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def framed(records: list[bytes], offset: int) -> bytes:
    """The records as framed in a file from byte `offset` on."""
    found = bytearray()
    for record in records:
        kind, rest = _WHOLE, record
        while True:
            room = _BLOCK - (offset + len(found)) % _BLOCK
            if room < _FRAME:
                found += b"\0" * room
                room = _BLOCK
            part, rest = rest[: room - _FRAME], rest[room - _FRAME :]
            if rest:
                kind = _FIRST if kind == _WHOLE else _MIDDLE
            elif kind != _WHOLE:
                kind = _LAST
            found += struct.pack("<IHB", _checksum(part, kind), len(part), kind) + part
            if not rest:
                break
    return bytes(found)


def read_frames(path: Path) -> Iterator[tuple[bytes, int]]:
    """The records of a file up to the first torn one, each with its end offset. Raises `OSError`."""
    with path.open("rb") as file:
        if file.read(len(HEAD)) != HEAD:
            return
        whole = b""
        while (frame := _read_frame(file)) is not None:
            kind, part = frame
            whole = part if kind in (_WHOLE, _FIRST) else whole + part
            if kind in (_WHOLE, _LAST):
                yield whole, file.tell()


def _read_frame(file: IO[bytes]) -> tuple[int, bytes] | None:
    room = _BLOCK - file.tell() % _BLOCK
    if room < _FRAME:
        file.read(room)
    head = file.read(_FRAME)
    if len(head) < _FRAME:
        return None
    checksum, length, kind = struct.unpack("<IHB", head)
    part = file.read(length)
    torn = len(part) < length or not _WHOLE <= kind <= _LAST or _checksum(part, kind) != checksum
    return None if torn else (kind, part)


def _checksum(part: bytes, kind: int) -> int:
    return zlib.crc32(part, zlib.crc32(bytes([kind])))
