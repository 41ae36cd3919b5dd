"""The command `fmstune`: its commands, and the one place where errors are printed.

Exit codes: 0 done; 1 failed at run time; 2 wrong command line, configuration or data; 3 a tracker's check
failed; 130 and 143 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from fmstune.cli import trackers
from fmstune.cli.train import train

app = typer.Typer(
    name="fmstune",
    help="Tune language models, and track every run with any tracker, several, or none.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.add_typer(trackers.app, name="trackers")

_UsageError: Any = typer.BadParameter.__mro__[1]


def _show_version(asked: bool) -> None:
    if asked:
        from fmstune import __version__

        print(f"fmstune {__version__}")
        raise typer.Exit


@app.callback()
def fmstune(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Tune language models, and track every run with any tracker, several, or none."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with the contract's code; the last line printed is the cause."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        code = app(args=_with_resume_value(arguments), prog_name="fmstune", standalone_mode=False)
    except _UsageError as error:
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        _fail(error.format_message().rstrip(".") + where, 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except BaseException as error:
        if debug or isinstance(error, SystemExit):
            raise
        _fail(_message(error), getattr(error, "exit_code", 1))
    sys.exit(code if isinstance(code, int) else 0)


def _message(error: BaseException) -> str:
    from fmstune.delivery.redaction import Redactor

    text = Redactor().text(str(error).strip())
    if hasattr(error, "exit_code"):
        return text
    # An error that no part of fmstune foresaw: its kind says more than its text alone.
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(code)


def _with_resume_value(arguments: list[str]) -> list[str]:
    """`--resume` alone means `--resume auto`; Typer has no options whose value may be left out."""
    completed = []
    for index, argument in enumerate(arguments):
        completed.append(argument)
        alone = index + 1 == len(arguments) or arguments[index + 1].startswith("-")
        if argument == "--resume" and alone:
            completed.append("auto")
    return completed
