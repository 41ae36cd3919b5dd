"""The termination log: the cause of a failure in a file, such as /dev/termination-log, which Kubernetes
reads."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fmstune.launch.failures import in_words
from fmstune.launch.rank import is_consequence
from fmstune.layout import CONFIG_FILE
from fmstune.secrets.redaction import hide

MOST_BYTES = 4096
"""The limit up to which Kubernetes reads it (https://kubernetes.io/docs/tasks/debug/debug-application/
determine-reason-pod-failure/)."""

_SETTING = "run.termination_log"
_resolved: str | None = None


def use(path: str | None) -> None:
    """Set the file, from the configuration."""
    global _resolved
    _resolved = path


def write(message: str, code: int, arguments: Sequence[str]) -> None:
    """Write the cause and the exit code of a command, if there is a termination log."""
    write_to(_resolved or requested_path(arguments), message, code)


def requested_path(arguments: Sequence[str]) -> str | None:
    """The path in a command line or configuration that may otherwise be wrong: searches `arguments`, and then
    the file that they name."""
    return _given(arguments) or _in_file(arguments)


def write_to(path: str | None, message: str, code: int) -> None:
    """Write the cause and the exit code to this file, if there is one."""
    if not path:
        return
    end = f"\nexit code {code}\n".encode()
    try:
        Path(path).write_bytes(message.encode()[: MOST_BYTES - len(end)] + end)
    except OSError as error:
        print(f"warning  {_SETTING} = {path} cannot be written: {error.strerror or error}", file=sys.stderr)


@contextlib.contextmanager
def written_from_python(path: str | None) -> Iterator[None]:
    """Write the cause of an error that leaves this block; the user's program may catch it."""
    try:
        yield
    except SystemExit:  # from user code: not reported, as in the command
        raise
    except BaseException as error:
        if not is_consequence():  # a consequence of another rank's failure would hide the cause
            code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
            write_to(path, hide(in_words(error)), code)
        raise


def _given(arguments: Sequence[str]) -> str | None:
    for before, argument in zip(("", *arguments), arguments, strict=False):
        assignment = argument.removeprefix("--set=") if argument.startswith("--set=") else argument
        if before == "--set" or argument.startswith("--set="):
            key, _, value = assignment.partition("=")
            if key.strip() == _SETTING:
                return value.strip().strip("\"'")
    return None


def _in_file(arguments: Sequence[str]) -> str | None:
    if "train" not in arguments[:2]:
        return None
    import tomli

    named = [argument for argument in arguments if argument.endswith(".toml") and "=" not in argument]
    for file in (*named, CONFIG_FILE):
        try:
            found = tomli.loads(Path(file).read_text("utf-8-sig"))["run"]["termination_log"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        return found if isinstance(found, str) else None
    return None
