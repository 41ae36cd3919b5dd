"""Runs commands in the test's own process; their shippers are forked from warm interpreters."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fmstune.cli.main import main
from tests.support.isolation import restore


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `fmstune ARGUMENTS` in this process, with additional variables; return what it printed.

    A training takes no system samples, since tests count events.
    """
    if arguments[:1] == ("train",):
        arguments = ("train", "--set", "resources.interval=0", *arguments[1:])
    before, folder, path, code = dict(os.environ), Path.cwd(), list(sys.path), 0
    os.environ.update(environment)
    os.chdir(cwd)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        tempfile.tempdir, temporary = None, tempfile.tempdir  # TMPDIR may differ
        try:
            with _printing_to(out, err):
                main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            tempfile.tempdir = temporary
            os.chdir(folder)
            restore(before)
            sys.path[:] = path
        texts = [_text(file) for file in (out, err)]
    return subprocess.CompletedProcess(["fmstune", *arguments], code, *texts)


@contextlib.contextmanager
def _printing_to(out: BinaryIO, err: BinaryIO) -> Iterator[None]:
    """Redirect all output of this process to files: its own, its children's and that of C libraries."""
    streams = sys.stdout, sys.stderr
    for stream in streams:
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    for number, file in ((1, out), (2, err)):
        os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = streams
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()
