"""Which weights an adapter was trained on: a fingerprint of its base model's files, kept beside the adapter.

An adapter names its base model by a path, at which there may be another model by the time it is merged: one
that was trained further, or one of another project. Nothing would fail; the answers would be wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = "base_model.json"
"""Beside an adapter of fmstune. PEFT refuses unknown keys in its own file."""
_SAMPLES, _SAMPLE = 4, 32
_BLOCKS = 256


def fingerprint(model: Path) -> str | None:
    """A hash of samples of each tensor of a model's directory or GGUF file, however many files hold them;
    `None` where there is none, or it cannot be read. Takes milliseconds."""
    digest = hashlib.sha256()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        for part in sorted(_parts(model)):
            digest.update(part)
        return digest.hexdigest()
    return None


def record(folder: Path, base: str) -> None:
    """Write the fingerprint of an adapter's base model beside the adapter."""
    (folder / FILE).write_text(json.dumps({"weights_sha256": base}) + "\n", encoding="utf-8")


def recorded(adapter: Path) -> str | None:
    """The fingerprint beside an adapter; `None` for those that were made otherwise."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((adapter / FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("weights_sha256"), str):
            return str(found["weights_sha256"])
    return None


def changed_base(adapter: Path, base: str, now: str | None) -> str | None:
    """A message about an adapter whose base model has other weights than those that it was trained on."""
    before = recorded(adapter)
    if before is None or now is None or before == now:
        return None
    return (
        f"the weights of {base} are not those that the adapter in {adapter} was trained on: they have "
        "changed since, or this is another model; what the adapter learnt may not fit them"
    )


def _parts(model: Path) -> Iterator[bytes]:
    if model.is_file():
        yield from _blocks(model)
        return
    single = model / "model.safetensors"
    files = [single] if single.is_file() else sorted(model.glob("model-*.safetensors"))
    for file in files:
        yield from _tensors(file)
    for file in () if files else sorted(model.glob("pytorch_model*.bin")):
        yield from _blocks(file)


def _tensors(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > file.stat().st_size:
            raise ValueError(file)
        header: dict[str, Any] = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            yield f"{name} {tensor['dtype']} {tensor['shape']} ".encode() + _samples(
                opened, begin, end, _SAMPLES
            )


def _blocks(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as opened:
        yield f"{file.name} ".encode() + _samples(opened, 0, os.fstat(opened.fileno()).st_size, _BLOCKS)


def _samples(opened: Any, begin: int, end: int, number: int) -> bytes:
    """Evenly spaced samples of the bytes of a file from `begin` to `end`, with their number."""
    last = max(begin, end - _SAMPLE)
    places = sorted({begin + (last - begin) * index // max(1, number - 1) for index in range(number)})
    found = [str(end - begin).encode()]
    for place in places:
        opened.seek(place)
        found.append(opened.read(min(_SAMPLE, end - place)))
    return b"".join(found)
