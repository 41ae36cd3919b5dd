"""What is too large for a line of the journal: files beside it, each called after the hash of its content.

An event names the file in its `item`: `{"file": "<sha256>.png", "size": 1234}`. The same content is there
once, however often it was tracked; a file is whole before the event that names it is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmstune.layout import FILES_DIR

_NAME = re.compile(r"([0-9a-f]{64})(\.[a-z]{1,5})")


class FileLost(Exception):
    """The file of an event is not there, or is another one by now."""


def keep(journal: Path, data: bytes, suffix: str) -> dict[str, Any]:
    """Write a file beside the journal at this path, unless it is there; what an event says of it. Raises
    `OSError`."""
    folder = journal.parent / FILES_DIR
    path = folder / f"{hashlib.sha256(data).hexdigest()}{suffix}"
    if not (path.is_file() and path.stat().st_size == len(data)):
        folder.mkdir(exist_ok=True)
        temporary = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)  # noqa: PTH105  (a path of the recorder's, which may be relative)
        finally:
            temporary.unlink(missing_ok=True)
    return {"file": path.name, "size": len(data)}


def kept(journal: Path, item: Mapping[str, Any]) -> Path:
    """The file that an event names. Raises `FileLost`."""
    name = str(item.get("file"))
    found = _NAME.fullmatch(name)
    if found is None:  # of a line that somebody has written, it could be any file
        raise FileLost(f"{name[:80]!r} is no file of the journal's")
    path = (journal.parent / FILES_DIR / name).absolute()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileLost(f"its file {path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != found[1]:
        raise FileLost(f"its file {path} has been changed")
    return path
