"""Finding out whether files can be written, without leaving any behind, and creating them whole."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fmstune.system.files import created_aside, is_writable, read_text, replace_text


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


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_created_aside_is_whole_or_absent(is_folder: bool, tmp_path: Path) -> None:
    path = tmp_path / ".store"

    def fill(new: Path, text: str) -> None:
        if is_folder:
            new.mkdir()
        (new / "file" if is_folder else new).write_text(text)

    child = os.fork()
    if not child:
        with created_aside(path) as new:
            fill(new, "killed")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert not path.exists()
    with pytest.raises(RuntimeError), created_aside(path) as new:  # noqa: PT012
        fill(new, "failed")
        raise RuntimeError
    assert not path.exists()
    for text in ("whole", "later"):  # the later one finds it there
        with created_aside(path) as new:
            fill(new, text)
    assert (path / "file" if is_folder else path).read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_replace_a_file_at_once_leave_one_of_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    texts = [str(number) * 50_000 for number in range(4)]

    def replace(text: str) -> None:
        for _ in range(50):
            replace_text(path, text)
            assert read_text(path) in texts

    with ThreadPoolExecutor() as threads:
        list(threads.map(replace, texts))
    assert [*tmp_path.iterdir()] == [path]
