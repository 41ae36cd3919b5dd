"""The journal and the files of its events are flushed to the disk while other threads rename them."""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
from pathlib import Path

from fmstune.delivery.journal import writer
from fmstune.delivery.journal.reader import Header
from fmstune.delivery.journal.writer import JournalWriter
from fmstune.layout import FILES_DIR
from tests.support.journals import journal_path
from tests.support.moments import acting


def test_files_that_get_their_name_while_the_journal_is_flushed_are_no_problem(run_directory: Path) -> None:
    said: list[str] = []
    header = Header("id", "run", 1.0, "/")
    journal = JournalWriter(journal_path(run_directory), header, on_problem=said.append)
    pending = journal.path.parent / FILES_DIR / ".checkpoint-5.pending"
    for moment in itertools.count(1):
        pending.mkdir(parents=True)
        (pending / "model.safetensors").touch()
        with acting(moment, lambda: shutil.rmtree(pending), writer, os, pathlib) as acted:
            journal.flush()
        assert (said, acted) == ([], acted)
        if not acted:
            break
    journal.close()
    assert moment > 50
