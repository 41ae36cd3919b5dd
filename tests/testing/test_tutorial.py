"""docs/writing-a-tracker.md is true: its first class breaks what it says, its last one nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fmstune.testing import examine
from tests.support.documents import ROOT

TUTORIAL = (ROOT / "docs" / "writing-a-tracker.md").read_text(encoding="utf-8")
FIRST, WHOLE, TEST = re.findall(r"```python\n(.*?)```", TUTORIAL, re.S)
KNOWN = "if event not in self.known:"


def lines(text: str) -> list[str]:
    """The findings of the kit, without the time estimate for a million events."""
    return [
        line for line in text.splitlines() if line.startswith(("keeps", "BREAKS")) and "million" not in line
    ]


def test_the_first_class_keeps_and_breaks_what_the_tutorial_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes_of_the_tutorial.py").write_text(FIRST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    said = str(examine("notes_of_the_tutorial:NotesTracker"))
    (shown,) = re.findall(r"```console\n\$ python -c .*?\n(.*?)```", TUTORIAL, re.S)
    assert lines(said) == lines(shown)


@pytest.mark.parametrize("code", [WHOLE, WHOLE.replace(KNOWN, "if True:")], ids=["as it is", "forgetful"])
def test_the_complete_class_passes_its_test_and_without_its_memory_it_does_not(
    code: str, tmp_path: Path
) -> None:
    assert KNOWN in WHOLE
    (tmp_path / "notes.py").write_text(code)
    (tmp_path / "test_notes.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == int(code != WHOLE), done.stdout + done.stderr
    if code == WHOLE:
        assert "11 passed" in done.stdout
    else:
        (breaks,) = re.findall(r"```\n(BREAKS .*?)\n```", TUTORIAL, re.S)
        assert breaks.partition("  ")[2] in done.stdout
