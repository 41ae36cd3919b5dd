"""User code: load it by name, and tell its exceptions from a request to stop."""

from __future__ import annotations

import importlib
import multiprocessing
from typing import Any

from fmstune.errors import ConfigError, RunError
from fmstune.text import shown

_of_a_tracker = False


def enter_tracker_process() -> None:
    """Note that this process imports the user's module only for the tracker in it."""
    global _of_a_tracker
    _of_a_tracker = True


def require_own_process(called: str = "fmstune.train") -> None:
    """Raise `RunError` in the process of a tracker and in one that `multiprocessing` has spawned: the script
    that it imports must not train again. `called` is the function that the script calls."""
    if _of_a_tracker:
        raise RunError(
            f"{called} was called while the module was imported for its tracker; call it below "
            "`if __name__ == '__main__':`, or move the tracker into a module of its own."
        )
    # `multiprocessing` itself looks there.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RunError(
            f"{called} was called while a spawned process imported the script; call it below "
            "`if __name__ == '__main__':`."
        )


def load_object(where: str, key: str) -> Any:
    """Load the object at `package.module:name`. Raises a `ConfigError` that names the setting `key`."""
    module_name, colon, name = where.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"{key} = {shown(where)} is not of the form module:name, such as my_code:score.")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ConfigError(
            f"{key} = {shown(where)}: the module cannot be imported: {type(error).__name__}: {error}. "
            "It is searched for on Python's path and in the current directory."
        ) from error
    own = module_name == "__main__" or "<" in name  # a script's, or one inside a function
    for part in name.split("."):
        if not hasattr(found, part):
            given = "It was passed from Python: move it into a module, and name that." if own else ""
            raise ConfigError(f"{key} = {shown(where)}: {module_name} has no {part}. {given}".strip())
        found = getattr(found, part)
    return found
