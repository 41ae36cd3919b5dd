"""`fmstune env`: the facts about this machine that a bug report needs."""

from __future__ import annotations

from typing import Annotated

import typer

from fmstune.cli.trackers import Debug, Json


def env(
    as_json: Json = False,
    torch: Annotated[
        bool, typer.Option("--torch", help="Also import torch, and show what it can use; takes seconds.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print versions, devices, memory, disk, trackers and settings of libraries, without secrets."""
    import dataclasses
    import json

    from fmstune.resources.inventory import inventory
    from fmstune.secrets.redaction import process_redactor

    hidden = process_redactor()
    found = inventory(hidden, with_torch=torch)
    if as_json:
        print(json.dumps(hidden.mapping(dataclasses.asdict(found)), indent=2, default=str))
        return
    for label, text in found.lines():
        print(f"{label:<8} {hidden.text(text)}")
    if not torch:
        print("(add --torch to see what torch can use; importing it takes seconds)")
