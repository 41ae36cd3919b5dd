"""Commands that are refused: in one line, at once, and nothing is touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support import commands

# Python runs this first in each process; it tells at the end what was imported that takes seconds.
GUARD = """
import atexit, sys

HEAVY = {"torch", "transformers", "trl", "wandb", "aim", "datasets"}
atexit.register(lambda: print(*("IMPORTED " + name for name in HEAVY & set(sys.modules)), sep="\\n",
                              end="", file=sys.stderr))
"""


def fmstune(here: Path, *arguments: str, light: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory beside which GUARD is."""
    path = os.pathsep.join([str(here.parent / "guard"), str(commands.ROOT)])
    return commands.fmstune(*arguments, cwd=here, light=light, PYTHONPATH=path, COLUMNS="100")


def told(here: Path, *arguments: str) -> str:
    """The one line that the command leaves, which has failed as a mistake does."""
    before = files(here)
    done = fmstune(here, *arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert "IMPORTED" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < 400
    assert files(here) == before
    return line


def files(here: Path) -> dict[Path, bytes]:
    """What is in a directory."""
    return {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
