"""W&B's settings: those that it finds by itself, overridden by our options, and those of a quiet run.

The SDK's behaviour was observed with wandb 0.31.0.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmstune.secrets.forms import REDACTED
from fmstune.secrets.names import is_secret_name
from fmstune.secrets.redaction import hide
from fmstune.trackers.records import RunStart, utf8
from fmstune.trackers.wandb.account import WandbUnusable, reason

if TYPE_CHECKING:
    import wandb

MODES = ("online", "offline", "disabled")
_INIT_TIMEOUT = 30.0
_MOST_NAME = 128  # the service refuses to open a run with a longer one
_MOST_TAG = 64  # the SDK refuses longer ones, and empty ones


@dataclass(frozen=True)
class WandbOptions:
    """Options of the tracker `wandb`. W&B decides those that are not set."""

    mode: str | None = field(
        default=None,
        metadata={"help": "online, offline or disabled; else WANDB_MODE, else online."},
    )
    project: str | None = field(
        default=None,
        metadata={"help": 'The project; else WANDB_PROJECT, else "fmstune".'},
    )
    entity: str | None = field(
        default=None,
        metadata={"help": "The user or team that owns the run; else WANDB_ENTITY, else yours."},
    )
    name: str | None = field(
        default=None,
        metadata={"help": "The run's display name; else WANDB_NAME, else the run's own."},
    )
    group: str | None = field(
        default=None,
        metadata={"help": "The group that the run belongs to; else WANDB_RUN_GROUP, else run.group."},
    )
    tags: tuple[str, ...] = field(
        default=(), metadata={"help": "Tags, of 1 to 64 characters each; else WANDB_TAGS, else run.tags."}
    )
    notes: str | None = field(
        default=None, metadata={"help": "A longer description of the run; else WANDB_NOTES, else run.notes."}
    )
    dir: str | None = field(
        default=None,
        metadata={"help": "Where to create the folder wandb/; else WANDB_DIR, else the current folder."},
    )


def found_settings(options: WandbOptions, name: str) -> wandb.Settings:
    """The settings W&B would use: its files, `WANDB_*`, then the `options` of the tracker `name`. Reads only.

    The SDK's own session is not used: it caches the first environment it saw, and credentials.
    """
    import wandb
    from wandb.errors import UsageError

    if options.mode is not None and options.mode not in MODES:
        raise WandbUnusable("bad_option", f"mode is {options.mode!r}", f"use {', '.join(MODES)}")
    given = {
        # transformers' own variable: its users expect it to work, but the SDK does not know it.
        "mode": options.mode or ("disabled" if disabled_by_variable() else None),
        "project": options.project,
        "entity": options.entity,
        "run_tags": options.tags or None,
        "root_dir": str(Path(options.dir).expanduser().absolute()) if options.dir else None,
    }
    settings = wandb.Settings(silent=True)
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    settings.settings_system = str(Path(folder, "settings").expanduser())
    try:
        where = "W&B's settings file"
        settings.update_from_system_settings()
        for where in sorted(os.environ):  # one by one: the SDK's error does not name the variable
            settings.update_from_env_vars({where: os.environ[where]})
        where = f"trackers.{name}"
        settings.update_from_dict(given)
    except (ValueError, UsageError) as error:
        shown = f" = {_shown(where, os.environ[where])}" if where in os.environ else ""
        raise WandbUnusable("bad_option", f"{where}{shown}: {reason(error)}", f"correct {where}") from None
    try:
        _ = settings.wandb_dir  # looks into the folder
    except OSError as error:
        unread = f"{settings.root_dir} cannot be read"
        raise WandbUnusable("no_permission", unread, WandbUnusable.another_folder) from error
    if settings.entity is not None and not re.fullmatch(r"[\w.-]+", settings.entity):
        raise WandbUnusable("bad_option", f"entity {settings.entity!r} is not a user or team name")
    return settings


def quiet_settings(start: RunStart, settings: wandb.Settings) -> dict[str, Any]:
    """Settings that keep a run from collecting anything by itself: by default, wandb 0.31 adds the command
    line, the script's path and source, the git remote and diff, and the installed packages."""
    quiet: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "x_disable_meta": True,  # not x_disable_machine_info, which also stops the system metrics
        "x_save_requirements": False,
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "label_disable": True,  # it would read the main script
        "program": "fmstune",
        # W&B's "Stop" button would interrupt this process, not the training.
        "stop_fn": lambda: None,
        "finish_timeout_raises": True,  # if WANDB_FINISH_TIMEOUT is set: no silent loss
    }
    if "init_timeout" not in settings.model_fields_set:
        quiet["init_timeout"] = _INIT_TIMEOUT
    if start.trainer_pid is None:
        quiet["x_disable_stats"] = True  # they would be those of this process
    else:
        quiet["x_stats_pid"] = start.trainer_pid
    return quiet


def _shown(variable: str, value: str) -> str:
    """The value of a variable for a message, without secrets."""
    return REDACTED if is_secret_name(variable) else ascii(hide(value)[:80])


def disabled_by_variable() -> bool:
    return os.environ.get("WANDB_DISABLED", "").upper() in ("1", "ON", "YES", "TRUE")


def disabled() -> str:
    by = " by WANDB_DISABLED" if disabled_by_variable() else ""
    return f"disabled{by}: nothing is sent to W&B and nothing is kept for it"


def init_options(options: Any, settings: wandb.Settings, start: RunStart, notes: list[str]) -> dict[str, Any]:
    """The arguments of `wandb.init` for the run: the tracker's `options` win over W&B's own variables, and
    these over the run's labels. What had to be cut is added to `notes`."""
    group = options.group or settings.run_group or start.group
    given = {
        "mode": "disabled" if settings._noop else options.mode,
        "project": settings.project or "fmstune",
        "entity": options.entity,
        "name": fitted(options.name or settings.run_name or start.name, notes),
        "group": group and fitted(group, notes, "group"),
        "tags": options.tags or settings.run_tags or _fitting_tags(start.tags, notes) or None,
        "notes": options.notes or settings.run_notes or (start.notes and utf8(start.notes)),
        "dir": settings.root_dir if options.dir else None,
    }
    return {key: value for key, value in given.items() if value is not None}


def fitted(name: str, notes: list[str], what: str = "name") -> str:
    """A name that the service accepts."""
    name = utf8(name)
    if len(name) <= _MOST_NAME:
        return name
    notes.append(f"its {what} there is cut to {_MOST_NAME} characters")
    return name[:_MOST_NAME]


def _fitting_tags(tags: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
    if any(len(tag) > _MOST_TAG for tag in tags):
        notes.append(f"its tags there are cut to {_MOST_TAG} characters")
    return tuple(dict.fromkeys(utf8(tag)[:_MOST_TAG] for tag in tags if tag))
