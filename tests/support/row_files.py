"""Reads row files, or returns the message with which one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmstune.config.schema.tables import DataSource
from fmstune.data.rows.reader import load_rows
from fmstune.errors import DataError

ROW = {"prompt": "What is 1+1?", "completion": "TWO-ANS"}
ROWS = [ROW, {"prompt": "b", "completion": "c"}]


def read(path: Path, content: str | bytes, **source: Any) -> list[Any]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(load_rows(DataSource(str(path), **source)).rows)


def refused(path: Path, content: str | bytes, **source: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, content, **source)
    return str(caught.value)
