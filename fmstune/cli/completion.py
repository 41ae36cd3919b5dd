"""Shell completion (after `fmstune --install-completion`) of trackers, methods, settings and runs.

Each function gets the start of a word. The shell waits for the answer, so nothing heavy is imported.
"""

from __future__ import annotations

import os
from pathlib import Path


def complete_tracker(incomplete: str) -> list[str]:
    """Complete the name of a tracker."""
    from fmstune.trackers.hf.integrations import integration_names
    from fmstune.trackers.registry import known_names

    return [name for name in (*known_names(), *integration_names()) if name.startswith(incomplete)]


def complete_method(incomplete: str) -> list[str]:
    """Complete a training method."""
    from fmstune.config.methods.known import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Complete the dotted key of a setting."""
    from fmstune.config.load.load import known_keys

    keys = sorted({*known_keys(), *_options()})
    return [key for key in keys if key.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Complete a setting in the form of `--set`."""
    if "=" in incomplete:
        return []
    return [f"{key}=" for key in complete_key(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Complete a run's directory: in `runs/`, and in the directory typed so far. Directories that contain
    runs are offered with a trailing slash."""
    from fmstune.config.paths.runs import RUNS, holds_run

    folders = [RUNS] if not incomplete else []
    folders += [Path(os.path.dirname(incomplete) or ".")]  # noqa: PTH120  (a trailing `/` matters)
    found: list[str] = []
    for folder in folders:
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if entry.is_dir() and not entry.name.startswith("."):
                leads = entry.name == RUNS.name or any(holds_run(each) for each in _inside(entry))
                found += [str(entry)] if holds_run(entry) else [f"{entry}/"] if leads else []
    return [path for path in dict.fromkeys(found) if path.startswith(incomplete)]


def _inside(folder: Path) -> list[Path]:
    try:
        return [each for each in folder.iterdir() if each.is_dir()]
    except OSError:  # not readable
        return []


def _options() -> list[str]:
    """The options of the built-in trackers, which declare them."""
    import dataclasses

    from fmstune.trackers.registry import BUILT_IN, tracker_class

    found = []
    for name in BUILT_IN:
        declared = tracker_class(name).Config
        fields = dataclasses.fields(declared) if declared is not None else ()
        found += [f"trackers.{name}.{field.name}" for field in fields]
    return found
