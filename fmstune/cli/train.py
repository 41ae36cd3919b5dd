"""`fmstune train`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fmstune.cli.completion import complete_method, complete_run, complete_setting, complete_tracker
from fmstune.cli.flags import given_flags
from fmstune.config.methods.known import DEFAULT, in_help
from fmstune.layout import CONFIG_FILE, CONFIG_NAME

_DATA, _TRAINING, _TRACKING = "Model and data", "Training", "Tracking"
"""The groups of options in the help; the other options are about the run."""


def train(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A TOML configuration. Default: fmstune.toml, if it exists here.",
            metavar="[CONFIG.toml]",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model: a directory, a hub name, or `demo`.", metavar="M", rich_help_panel=_DATA
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="The training data: a file, a directory, a glob, a hub name, or `demo`; may be given "
            "several times.",
            metavar="D",
            rich_help_panel=_DATA,
        ),
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(help="The evaluation data, as for --data.", metavar="D", rich_help_panel=_DATA),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="The text of a row, such as '### Q: {question}\n### A: {answer}'.",
            metavar="TEXT",
            rich_help_panel=_DATA,
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool | None,
        typer.Option("--skip-bad-rows", help="Leave out damaged rows, and list them.", rich_help_panel=_DATA),
    ] = None,
    strict_chat: Annotated[
        bool | None,
        typer.Option(
            "--strict-chat",
            help="Refuse chats that must be changed to fit the chat template.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"The training method ({in_help()}). Default: {DEFAULT}.",
            metavar="NAME",
            rich_help_panel=_DATA,
            autocompletion=complete_method,
        ),
    ] = None,
    output_dir: Annotated[
        str | None,
        typer.Option(help="The run's directory. Default: a new one in runs/.", metavar="O"),
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            help="A tracker for the run; may be given several times. See `fmstune trackers list`.",
            metavar="T",
            rich_help_panel=_TRACKING,
            autocompletion=complete_tracker,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The run's name in trackers and lists.", metavar="NAME")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="A tag of the run; may be given several times.", metavar="TAG"),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            help="Metadata of the run for its trackers, such as team=nlp.",
            metavar="K=V",
            rich_help_panel=_TRACKING,
        ),
    ] = None,
    params_file: Annotated[
        Path | None,
        typer.Option(
            help="Metadata of the run, from a JSON or TOML file.", metavar="F", rich_help_panel=_TRACKING
        ),
    ] = None,
    lora: Annotated[
        bool | None,
        typer.Option(
            "--lora/--full", help="Train a LoRA adapter, or all weights.", rich_help_panel=_TRAINING
        ),
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="Passes over the training data.", metavar="N", rich_help_panel=_TRAINING),
    ] = None,
    max_steps: Annotated[
        str | None, typer.Option(help="Optimizer steps.", metavar="N", rich_help_panel=_TRAINING)
    ] = None,
    learning_rate: Annotated[
        str | None, typer.Option(help="The peak learning rate.", metavar="LR", rich_help_panel=_TRAINING)
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(help="Rows per batch on each device.", metavar="N", rich_help_panel=_TRAINING),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(help="The random seed.", metavar="N", rich_help_panel=_TRAINING),
    ] = None,
    auto_batch: Annotated[
        bool | None,
        typer.Option(
            "--auto-batch",
            help="Find the largest batch that fits; the effective batch size does not change.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    rehearse: Annotated[
        bool | None,
        typer.Option(
            "--rehearse/--no-rehearse",
            help="Try the longest batch, an evaluation and a checkpoint first. Default: for long runs.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any setting, such as training.warmup_steps=10.",
            metavar="KEY=VALUE",
            rich_help_panel=_TRAINING,
            autocompletion=complete_setting,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Resume a run from its newest checkpoint, or from the checkpoint at a path. Without "
            "--output-dir: the newest unfinished run in runs/.",
            metavar="[auto|PATH]",
            autocompletion=complete_run,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the output directory.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything up to the first step; write nothing.")
    ] = False,
    strict_tracking: Annotated[
        bool | None,
        typer.Option(
            "--strict-tracking",
            help="Treat an unreachable tracker as an error instead of a warning.",
            rich_help_panel=_TRACKING,
        ),
    ] = None,
    nproc: Annotated[
        str | None,
        typer.Option(
            help="The number of processes on this machine (by torchrun); auto: one for each GPU.",
            metavar="N|auto",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print events as JSON, one object per line; the last is a summary."),
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Print plain lines on a terminal, too.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Tune a model on data, and track the run.

    Without a model, data and fmstune.toml, tunes a tiny demo model on demo data. Prints the run's directory
    to standard output, unless that is a terminal.
    """
    from fmstune.cli.terminal import screen
    from fmstune.launch import rank as ranks
    from fmstune.launch import termination_log as termination
    from fmstune.requirements import require_supported
    from fmstune.run.resolve import load_config

    require_supported(complete=True)
    flags, found, further = given_flags(context.params), None, []
    resolved = load_config(config, flags, set_ or [], param or [], params_file)
    if resume == "auto" and resolved.output_dir is None and not ranks.under_torchrun():
        from fmstune.run.unfinished import to_resume

        found = to_resume(config)
        further = ["--output-dir", str(found)]
        if config is None:
            config = found / CONFIG_NAME
            further.append(str(config))
        flags = [*flags, ("training.output_dir", str(found), "--resume")]
        resolved = load_config(config, flags, set_ or [], param or [], params_file)
    elif resume is not None:
        from fmstune.run.unfinished import continued

        found = continued(resume, resolved)
        if found is not None:
            config = found / CONFIG_NAME
            further = [str(config)]
            resolved = load_config(config, flags, set_ or [], param or [], params_file)
    termination.use(resolved.run.termination_log)
    grouped = ranks.needs_process_group(resolved.training)
    if nproc is not None or grouped:
        from fmstune.launch.local import is_multi_node, launch, process_count, without_nproc

        processes = 1 if nproc is None else process_count(nproc)
        if processes > 1 or is_multi_node() or grouped:
            on_cpu = bool(resolved.training.get("use_cpu"))
            # Pass the run that was found: a process that searched by itself might find that the first process
            # has it already.
            launch(processes, [*without_nproc(context.obj), *further], on_cpu=on_cpu)
            return
    ranks.end_with_parent()

    from fmstune.launch.environment import is_main_process
    from fmstune.launch.notices import warnings_shown
    from fmstune.launch.output import redirected_output
    from fmstune.report.console import SummingConsole
    from fmstune.run.run import dry_run as run_dry
    from fmstune.run.run import run

    answer: Literal["json", "directory"] = "json" if as_json else "directory"
    with contextlib.ExitStack() as shown:
        others = None if dry_run else shown.enter_context(redirected_output())
        shown.enter_context(ranks.process_group_left())
        console = screen(others.err if others else None)
        if others is None and (as_json or not sys.stdout.isatty()):
            # Keep the output of callbacks out of the answer.
            shown.enter_context(contextlib.redirect_stdout(sys.stderr))
        if console.is_terminal and is_main_process() and not plain and not as_json:
            from fmstune.report.live import LiveConsole

            out: SummingConsole = shown.enter_context(LiveConsole(console, answer=answer, others=others))
        else:
            out = SummingConsole(console, quiet=not is_main_process(), answer=answer, others=others)
        if others is not None and is_main_process():
            out.before_end = shown.enter_context(warnings_shown(out.warn))
        if found is not None:
            unread = f"; {CONFIG_FILE} is not read" if Path(CONFIG_FILE).is_file() else ""
            out.say("resume", f"{found}, with its {CONFIG_NAME}{unread}")
        elif resolved.demo_by_default:
            out.say("demo", "no model and data given: tuning the demo model on demo data")
        try:
            if dry_run:
                run_dry(resolved, out, resume=resume, overwrite=overwrite)
            else:
                run(resolved, out, resume=resume, overwrite=overwrite)
        except BaseException as error:
            error.__dict__["answered"] = out.answered  # read by cli/main.py
            raise
