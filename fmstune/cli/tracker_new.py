"""`fmstune trackers new`: a package for a custom tracker.

`fmstune.testing.new_tracker` defines the contents and checks the arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="The tracker's name, for `--tracker`.", metavar="NAME")]
Folder = Annotated[
    Path | None,
    typer.Argument(help="The directory to create. Default: fmstune-NAME.", metavar="[DIR]"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def new(name: Name, folder: Folder = None, debug: Debug = False) -> None:
    """Create a tracker package to start from.

    It has a small commented tracker, its test and its entry point. Overwrites nothing. The test runs
    fmstune's conformance kit, and passes unchanged.
    """
    from fmstune.testing.new_tracker import write_package

    files = write_package(name, folder)
    for path in files:
        typer.echo(str(path))
    where = files[0].parent
    typer.echo(f"next: cd {where} && python -m pytest -s && pip install .", err=True)
