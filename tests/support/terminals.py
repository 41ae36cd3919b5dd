"""A command in a terminal of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from collections.abc import Sequence


def in_terminal(arguments: Sequence[str], typed: str, columns: int = 80, term: str = "dumb") -> str:
    """Run `fmstune` in a terminal in which this is typed; returns all that is seen there."""
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
    with contextlib.suppress(OSError):  # the end, as a terminal has it
        while block := os.read(terminal, 4096):
            seen += block
    os.close(terminal)
    os.waitpid(pid, 0)
    return seen.decode(errors="replace")
