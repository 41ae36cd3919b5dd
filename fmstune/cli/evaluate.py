"""`fmstune evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fmstune.cli.completion import complete_method, complete_run, complete_setting
from fmstune.config.methods.known import in_help


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A run, checkpoint, adapter or model, or a name on the hub.",
            metavar="RUN_OR_MODEL",
            autocompletion=complete_run,
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="The data to evaluate on; may be given several times. Default: that of the run.", metavar="D"
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"The training method ({in_help()}) whose metrics are computed. Default: the run's, or sft.",
            metavar="NAME",
            autocompletion=complete_method,
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="The text of a row, as for `fmstune train`.", metavar="TEXT")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per batch.", min=1, metavar="N")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="As for `fmstune train`.", metavar="KEY=VALUE", autocompletion=complete_setting
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Evaluate a model on data: the loss, accuracy and other metrics that its run tracks at evaluations.

    Other settings are those of the run, or of fmstune.toml for a model. Writes no files but the cache of
    prepared data, and tracks nothing.
    """
    import contextlib
    import sys

    from fmstune.cli.printing import print_json
    from fmstune.cli.terminal import screen
    from fmstune.console import RunConsole
    from fmstune.launch.environment import is_main_process, quiet_libraries
    from fmstune.models.locate import Place, locate, use
    from fmstune.requirements import require_supported
    from fmstune.run.evaluate import evaluate as run_evaluation
    from fmstune.run.evaluate import evaluation_of
    from fmstune.system.threads import set_threads

    require_supported(complete=True)
    console = RunConsole(screen(), quiet=not is_main_process())
    given: dict[str, Any] = {
        "run.method": method,
        "data.template": template,
        "training.per_device_eval_batch_size": batch_size,
    }
    given = {key: value for key, value in given.items() if value is not None}
    place = locate(model)
    evaluation_of(model, place, data or (), given, sets or [])  # before anything slow
    quiet_libraries()
    set_threads()

    def evaluated(place: Place) -> dict[str, float]:
        if place.checkpoint:
            console.say("model", f"{model} did not finish; using its newest checkpoint, {place.path}")
        return run_evaluation(evaluation_of(model, place, data or (), given, sets or []), console)

    with contextlib.redirect_stdout(sys.stderr):
        metrics = use(model, place, evaluated)
    if not is_main_process():
        return
    if as_json:
        print_json(metrics)
        return
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:{width}}  {value:.6g}")
