"""Records in the framing of event files (a length, its checksum, the data, its checksum), and metrics as
data.

TensorBoard's own checksum takes longer than everything else done for a metric, as it is pure Python, one byte
at a time. Here it is computed for many records at once, one byte of each at a time.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

_FEWEST, _LONGEST = 16, 1024
"""For fewer records, and for longer ones, one by one is as fast."""


def framed(records: Sequence[bytes]) -> bytes:
    """The framed records, concatenated."""
    sums = _checksums(records)
    parts = list[bytes]()
    for data, checksum in zip(records, sums, strict=True):
        parts += (_head(len(data)), data, checksum.to_bytes(4, "little"))
    return b"".join(parts)


def scalars_event(values: Sequence[tuple[str, float]], step: int, moment: float, writer: str) -> bytes:
    """An `Event` of tags and numbers (`Summary.Value.simple_value`) in protocol buffer encoding: building the
    objects first takes five times as long."""
    summary = b"".join(_value_head(tag) + _single(number) for tag, number in values)
    said = writer.encode()
    source = b"\x0a" + _varint(len(said)) + said
    return b"".join((
        b"\x09", _double(moment), b"\x10", _varint(step & 0xFFFFFFFFFFFFFFFF),
        b"\x2a", _varint(len(summary)), summary, b"\x52", _varint(len(source)), source,
    ))  # fmt: skip


_single, _double = struct.Struct("<f").pack, struct.Struct("<d").pack


@functools.lru_cache(maxsize=4096)
def _value_head(tag: str) -> bytes:
    """The bytes before a value's number, whose length is fixed."""
    named = b"\x0a" + _varint(len(tag.encode())) + tag.encode() + b"\x15"
    return b"\x0a" + _varint(len(named) + 4) + named


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


@functools.lru_cache(maxsize=4096)
def _head(length: int) -> bytes:
    head = struct.pack("<Q", length)
    return head + struct.pack("<I", _checksum(head))


def _checksum(data: bytes) -> int:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return int(masked_crc32c(data))


def _checksums(records: Sequence[bytes]) -> list[int]:
    found = [0] * len(records)
    short = [at for at, data in enumerate(records) if len(data) <= _LONGEST]
    if len(short) < _FEWEST:
        return list(map(_checksum, records))
    short.sort(key=lambda at: len(records[at]), reverse=True)
    for at, checksum in zip(short, _of_all([records[at] for at in short]), strict=True):
        found[at] = checksum
    return [found[at] if len(data) <= _LONGEST else _checksum(data) for at, data in enumerate(records)]


def _of_all(records: Sequence[bytes]) -> list[int]:
    """The checksums of records that are sorted by length, longest first."""
    import numpy as np
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import CRC_TABLE

    table, most = np.array(CRC_TABLE, dtype=np.uint32), len(records[0])
    data = np.frombuffer(b"".join(each.ljust(most, b"\0") for each in records), dtype=np.uint8)
    columns = np.ascontiguousarray(data.reshape(len(records), most).T)
    lengths = np.array([len(each) for each in records])
    crc = np.full(len(records), 0xFFFFFFFF, dtype=np.uint32)
    for at, column in enumerate(columns):
        longer = int(np.searchsorted(-lengths, -at, side="left"))  # so many are longer than `at`
        now = crc[:longer]
        crc[:longer] = table[(now ^ column[:longer]) & 0xFF] ^ (now >> np.uint32(8))
    crc ^= np.uint32(0xFFFFFFFF)
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
    return [int(each) for each in masked]
