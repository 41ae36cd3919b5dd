"""The `.wandb` file of a run, as W&B's SDK writes it. Observed with wandb 0.31."""

from __future__ import annotations

import importlib
import mmap
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32 * 1024


def is_complete(path: Path) -> bool:
    """Whether the file has all records up to the run's end, each under the next number. While the disk is
    full, wandb-core drops what it cannot write, and ends the run without an error. Raises `OSError`."""
    proto: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    lost: list[str] = []
    with path.open("rb") as file:
        try:
            log = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # it is empty
            return False
        with log:
            numbered = deque(enumerate(records(log, path, lost), 1), maxlen=1)
    if lost or not numbered:
        return False
    count, last = numbered[0]
    end = proto.Record.FromString(last)
    return bool(end.HasField("exit") and end.num == count)


def records(log: bytes | mmap.mmap, path: Path, lost: list[str]) -> Iterator[bytes]:
    """The records of a LevelDB log, as W&B writes it: seven bytes of its own, then blocks of 32 KiB in which
    a record is whole (1) or in parts (2 first, 3 middle, 4 last). What is damaged is added to `lost`."""
    if log[:4] != b":W&B":
        lost.append(f"{path} is not a W&B file")
        return
    at, parts = 7, b""
    while at + 7 <= len(log):
        if _BLOCK - at % _BLOCK < 7:  # too little room for a header: zeros up to the next block
            at += _BLOCK - at % _BLOCK
            continue
        checksum, size, part = struct.unpack_from("<IHB", log, at)
        body = log[at + 7 : at + 7 + size]
        if part == 0:
            return
        if len(body) < size or checksum != zlib.crc32(bytes([part]) + body):
            lost.append(f"{path} is damaged or cut off at byte {at}; the rest is lost")
            return
        at += 7 + size
        parts = body if part in (1, 2) else parts + body
        if part in (1, 4):
            yield parts
    if at < len(log):
        lost.append(f"{path} is cut off at byte {at}; the rest is lost")
