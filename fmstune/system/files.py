"""Writing small files whole: whoever reads one at any moment sees the old text or the new one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Replace the file at `path` by one with `text`, atomically. Raises `OSError`, and keeps the old file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # a full disk leaves an empty file
            temporary.unlink(missing_ok=True)
        raise
