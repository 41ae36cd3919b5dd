"""Code that is not fmstune's own: finding it by its name, and what it may raise during a run."""

from __future__ import annotations

import importlib
import signal
from typing import Any

from fmstune.errors import ConfigError, Interrupted
from fmstune.text import shown


def is_stop(error: BaseException) -> bool:
    """Whether the error is the user's wish to stop. A `KeyboardInterrupt` is one only where Python's own
    handler would raise it: during a training the run has its own handler, and the error is the foreign
    code's. So are `SystemExit`, `asyncio.CancelledError` and the panics of Rust extensions, none of which is
    an `Exception`."""
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, Interrupted)


def load_object(where: str, key: str) -> Any:
    """What `package.module:name` stands for. Raises `ConfigError` that names the setting `key`."""
    module_name, colon, name = where.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"{key} = {shown(where)} is not of the form module:name, such as my_code:score.")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ConfigError(
            f"{key} = {shown(where)}: the module cannot be imported: {type(error).__name__}: {error}. "
            "It is looked for where Python looks, and in the current directory."
        ) from error
    own = module_name == "__main__" or "<" in name  # a script's, or one inside a function
    for part in name.split("."):
        if not hasattr(found, part):
            given = "It was given from Python: put it into a module, and name that." if own else ""
            raise ConfigError(f"{key} = {shown(where)}: there is no {part} in {module_name}. {given}".strip())
        found = getattr(found, part)
    return found
