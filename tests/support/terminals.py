"""Runs a command in a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from collections.abc import Sequence


def in_terminal(arguments: Sequence[str], typed: str, columns: int = 80, term: str = "dumb") -> str:
    """Run `fmstune` in a pseudo-terminal with this input; returns everything that is displayed."""
    pid, terminal = pty.fork()
    if pid == 0:
        from fmstune.cli.main import main

        os.environ.update(COLUMNS=str(columns), TERM=term)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        try:
            main(list(arguments))
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        finally:
            os._exit(1)
    os.write(terminal, typed.encode())
    seen = b""
    with contextlib.suppress(OSError):  # EIO is how a terminal signals its end
        while block := os.read(terminal, 4096):
            seen += block
    os.close(terminal)
    os.waitpid(pid, 0)
    return seen.decode(errors="replace")
