"""`fmstune trackers new`: the package of a tracker of one's own.

What is written, and what is refused, is `fmstune.testing.new_tracker`'s to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="What `--tracker` will call it.", metavar="NAME")]
Folder = Annotated[
    Path | None,
    typer.Argument(help="Where to put it. Default: fmstune-NAME here.", metavar="[DIR]"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def new(name: Name, folder: Folder = None, debug: Debug = False) -> None:
    """Write a tracker package to start from: a small commented tracker, its test and its entry point.

    Overwrites nothing. The test is fmstune's conformance kit, and passes as it is.
    """
    from fmstune.testing.new_tracker import write_package

    files = write_package(name, folder)
    for path in files:
        typer.echo(str(path))
    where = files[0].parent
    typer.echo(f"next: cd {where} && python -m pytest -s && pip install .", err=True)
