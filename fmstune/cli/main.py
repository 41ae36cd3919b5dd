"""The entry point of the command `fmstune`, and the only place where errors are printed.

Exit codes: 0 done; 1 failed at run time; 2 wrong command line, configuration or data; 3 a tracker's check
failed; 129, 130 and 143 interrupted by SIGHUP, SIGINT and SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from pathlib import Path
from typing import Any, NoReturn

from fmstune.launch.environment import drop_empty_size
from fmstune.system.collector import collect_rarely


class _Reported(SystemExit):
    """The exit of a command whose error has been printed."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line, and exit with the documented code; the last line printed is the cause."""
    _fill_closed_streams()
    drop_empty_size()
    if argv is None:  # the process belongs to us
        collect_rarely()
    teardown = None
    if "TORCHELASTIC_RUN_ID" in os.environ:  # one process of several
        from fmstune.launch.teardown import Teardown

        teardown = Teardown()
    try:
        _main(sys.argv[1:] if argv is None else argv)
    except SystemExit as end:
        if teardown is not None:
            teardown.skip_with(end.code)
        raise
    finally:
        _drop_unwritable_output()
        if argv is None:  # a program that calls this with its own arguments continues afterwards
            _end_in_time(sys.exc_info()[1])


def _main(arguments: list[str]) -> NoReturn:
    try:
        # The user's trackers and functions may be modules here; last, so that they do not shadow packages.
        sys.path.append(str(Path.cwd()))
    except OSError:
        _fail("the current directory no longer exists; change to another one.", 2)
    try:
        code = _run(arguments)
        sys.stdout.flush()  # an answer that cannot be written is an error
    except KeyboardInterrupt:
        _fail("interrupted", 130, as_json=_wants_json(arguments))
    except _Reported:
        raise
    except SystemExit as end:  # from user code; the launcher and the other ranks cannot see it
        from fmstune.launch import rank as ranks

        ranks.report_exit(end)
        if arguments[:1] != ["train"] or (end.code and ranks.under_torchrun()):
            raise  # of a rank, the launcher says what was reported
        # A training that did not finish has failed, whatever the code.
        code = end.code if isinstance(end.code, int) and end.code else 1
        why = f" with {end.code!r}" if end.code else ""
        _fail(f"code of yours called sys.exit{why}.", code, as_json=_wants_json(arguments))
    except BaseException as error:
        # The reader of the output has gone, as in `fmstune trackers list | head -1`. Not for `train`, which
        # does not need a reader, and whose own pipes may break.
        if isinstance(error, BrokenPipeError) and arguments[:1] != ["train"] and _reader_has_gone():
            sys.exit(0)
        if "--debug" in arguments:
            _print_traceback()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and _output_is_full():
            _fail(f"the output cannot be written: {error.strerror}; send it elsewhere.", 1)
        from fmstune.launch.failures import in_words, user_error

        error = user_error(error) or error
        # If a run's summary has been printed, that reports how it ended.
        as_json = _wants_json(arguments) and not getattr(error, "answered", False)
        code, expected = getattr(error, "exit_code", 1), hasattr(error, "exit_code")
        message = in_words(error)
        _fail(message, code, expected=expected, as_json=as_json, hint=_where(error, message, arguments))
    sys.exit(code)


def _where(error: BaseException, message: str, arguments: list[str]) -> str:
    """What shows where an unexpected error comes from: the log of the run, or a flag; `""` for others."""
    if not message.startswith(type(error).__name__) or "--debug" in arguments:
        return ""
    return f" ({getattr(error, 'log', '--debug')} shows where)"


def _wants_json(arguments: list[str]) -> bool:
    return "--json" in arguments[: arguments.index("--") if "--" in arguments else None]


def _reader_has_gone() -> bool:
    """Whether the reader of standard output has closed its end."""
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in watched.poll(0))
    except (OSError, ValueError):
        return False


def _output_is_full() -> bool:
    """Whether standard output is what has no room, rather than a file. Writes a space to find out: Python has
    dropped what it could not write."""
    try:
        os.write(1, b" ")
    except OSError:
        return True
    return False


def _end_in_time(how: BaseException | None) -> None:
    """Exit even if trackers that ran in this process left threads or handlers that would block the exit."""
    deadline = sys.modules.get("fmstune.system.deadline")  # imported where third-party code was called
    if deadline is not None and isinstance(how, SystemExit):
        deadline.end_in_time(how.code if isinstance(how.code, int) else int(how.code is not None))


def _fill_closed_streams() -> None:
    """Open /dev/null for closed standard streams: the next file opened would get the stream's number, and
    with it whatever libraries write there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  (open until the end)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _drop_unwritable_output() -> None:
    """Drop output that a stream cannot take at exit: Python would complain, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: list[str]) -> int:
    if arguments[:2] == ["trackers", "list"] and set(arguments[2:]) <= {"--json"}:
        # Typer imports pydantic as soon as a command has a parameter, which would be 0.09 s of 0.16. Scripts
        # and shells call this command often.
        from fmstune.cli.tracker_table import print_trackers

        print_trackers(as_json="--json" in arguments)
        return 0
    import typer

    from fmstune.cli.app import app_for

    usage_error: Any = typer.BadParameter.__mro__[1]
    try:
        code = app_for(arguments)(
            args=_with_resume_value(arguments), prog_name="fmstune", standalone_mode=False, obj=arguments
        )
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            print(error.format_message(), file=sys.stderr)
            return 2
        from fmstune.cli import usage

        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        _fail(usage.message(error) + where, 2, as_json=_wants_json(arguments))
    except typer.Abort as abort:
        if isinstance(abort.__context__, EOFError):  # a truncated file, rather than an unanswered prompt
            raise abort.__context__ from None
        raise KeyboardInterrupt from None
    except SystemExit as end:  # Typer exits with 1, without a message, when a pipe breaks
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        raise
    return code if isinstance(code, int) else 0


def _print_traceback() -> None:
    import traceback

    from fmstune.secrets.redaction import hide

    print(hide(traceback.format_exc()), file=sys.stderr)


def _fail(
    message: str, code: int, *, expected: bool = True, as_json: bool = False, hint: str = ""
) -> NoReturn:
    from fmstune.launch import rank as ranks
    from fmstune.secrets.redaction import hide

    message = hide(message)
    reported = bool(message) and ranks.report_cause(message, code, expected=expected)
    # A failure that follows from another rank's comes later, and would hide the cause.
    consequence = ranks.is_consequence()
    # With several processes, the launcher prints the cause, once and last.
    if message and not consequence and not (reported and ranks.is_launched()):
        from fmstune.launch import termination_log as termination

        termination.write(message, code, sys.argv)
        if as_json:
            _print_json_error(message, code)
        with contextlib.suppress(OSError, ValueError):  # without a reader, the exit code has to do
            print(f"error: {message}{hide(hint)}", file=sys.stderr, flush=True)
    raise _Reported(code)


def _print_json_error(message: str, code: int) -> None:
    """Print the error as the last, usually the only, JSON object on standard output."""
    import json

    text = json.dumps({"kind": "error", "error": message, "exit_code": code}, ensure_ascii=False)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")
        sys.stdout.flush()


def _with_resume_value(arguments: list[str]) -> list[str]:
    """Replace a bare `--resume` by `--resume auto`; Typer has no options with an optional value."""
    completed = []
    for index, argument in enumerate(arguments):
        completed.append(argument)
        alone = index + 1 == len(arguments) or arguments[index + 1].startswith("-")
        if argument == "--resume" and alone:
            completed.append("auto")
    return completed
