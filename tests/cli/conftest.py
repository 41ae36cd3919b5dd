"""Fixtures that several command-line tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.user_errors import GUARD


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty directory, for `tests.support.user_errors`."""
    directory = tmp_path / "here"
    directory.mkdir()
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    return directory
