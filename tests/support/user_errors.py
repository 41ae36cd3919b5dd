"""Commands that are refused: with one line, at once, and without touching anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support import commands

# Python runs this first in each process; at exit it reports which slow imports took place.
GUARD = """
import atexit, sys

HEAVY = {"torch", "transformers", "trl", "wandb", "aim", "datasets"}
atexit.register(lambda: print(*("IMPORTED " + name for name in HEAVY & set(sys.modules)), sep="\\n",
                              end="", file=sys.stderr))
"""


def fmstune(
    here: Path, *arguments: str, light: bool = True, fresh: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory next to GUARD."""
    path = os.pathsep.join([str(here.parent / "guard"), str(commands.ROOT)])
    return commands.fmstune(
        *arguments, cwd=here, light=light, fresh=fresh, PYTHONPATH=path, COLUMNS="100", **variables
    )


def error_line(here: Path, *arguments: str) -> str:
    """The only line that a command prints when it is refused as a user error."""
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
    """The content of a directory."""
    return {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
