"""Finding out whether files can be written, without leaving any behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmstune.system.files import is_writable, replace_text


@pytest.mark.parametrize("folder", ["/proc", "/proc/self", "/sys", "/dev/null", "/nowhere"])
def test_unwritable_folders_are_detected_even_by_root(folder: str) -> None:
    assert not is_writable(Path(folder))


def test_a_writable_folder_is_left_unchanged(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    assert is_writable(tmp_path)
    assert (list(tmp_path.iterdir()), tmp_path.stat().st_mtime_ns) == ([], before)


def test_a_file_that_cannot_be_replaced_stays_and_nothing_is_left_next_to_it(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_text(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
