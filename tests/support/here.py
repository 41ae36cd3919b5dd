"""Commands in the test's own process, whose shippers are forked from warm interpreters."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from fmstune.cli.main import main
from tests.support.surroundings import restore


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`fmstune ARGUMENTS` in this process, with more variables than the test's own; what it has printed.

    A training samples no machine, since tests count events.
    """
    if arguments[:1] == ("train",):
        arguments = ("train", "--set", "resources.interval=0", *arguments[1:])
    before, folder, path = dict(os.environ), Path.cwd(), list(sys.path)
    out, err = io.StringIO(), io.StringIO()
    os.environ.update(environment)
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os.chdir(folder)
        restore(before)
        sys.path[:] = path
    return subprocess.CompletedProcess(["fmstune", *arguments], code, out.getvalue(), err.getvalue())
