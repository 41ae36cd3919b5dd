"""`fmstune merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fmstune.cli.completion import complete_run

if TYPE_CHECKING:
    from fmstune.models.locate import Place
    from fmstune.models.merge import Merged


def merge(
    run: Annotated[
        str,
        typer.Argument(
            help="The run, checkpoint or directory with the adapter.",
            metavar="RUN",
            autocompletion=complete_run,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The directory to write the model to.", metavar="OUT")],
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="The dtype of the written weights; auto: that of the base model."),
    ] = "auto",
    base: Annotated[
        str | None,
        typer.Option(help="The base model, if it has moved.", metavar="MODEL"),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run the Python code that comes with a base on the hub."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Merge an adapter into its base model, and write a plain model with its tokenizer, as safetensors."""
    from fmstune.cli.terminal import screen
    from fmstune.console import RunConsole
    from fmstune.launch.environment import quiet_libraries
    from fmstune.models import merge as merging
    from fmstune.models.locate import locate, use
    from fmstune.requirements import require_supported
    from fmstune.system.threads import set_threads

    require_supported(complete=True)
    console = RunConsole(screen())
    place = locate(run)
    merging.check(place, out)
    quiet_libraries()
    set_threads()

    def merged(place: Place) -> Merged:
        if place.checkpoint:
            console.say("adapter", f"{run} did not finish; using its newest checkpoint, {place.path}")
        return merging.merge(place, out, dtype=dtype, base=base, trust_remote_code=trust_remote_code)

    done = use(run, place, merged)
    for note in done.notes:
        console.warn(note)
    console.say("merged", f"{done.adapter} with {done.base}")
    console.say("saved", f"{out} · {done.bytes / 1e6:.1f} MB, {done.dtype}")
