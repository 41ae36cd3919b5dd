"""SwanLab's settings: those that it finds by itself (`SWANLAB_*`, `.env`, its YAML files, the key stored by
`swanlab login`), overridden by our options. Reads only. SwanLab's behaviour was observed with
0.10."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmstune.trackers.records import RunStart, utf8
from fmstune.trackers.unusable import Unusable

MODES = ("online", "cloud", "offline", "disabled")
_PROJECT = "SWANLAB_PROJECT"
_MOST_NAME, _MOST_NOTES, _MOST_TAGS = 512, 1024, 30
"""The longest texts and the most tags that SwanLab accepts (`pkg/constraints`)."""


@dataclass(frozen=True)
class SwanLabOptions:
    """Options of the tracker `swanlab`. SwanLab decides those that are not set."""

    mode: str | None = field(
        default=None,
        metadata={"help": "online (or cloud), offline or disabled; else SWANLAB_MODE, else online."},
    )
    project: str | None = field(
        default=None,
        metadata={"help": 'The project; else SWANLAB_PROJ_NAME, else SWANLAB_PROJECT, else "fmstune".'},
    )
    workspace: str | None = field(
        default=None,
        metadata={
            "help": "The user or organization that owns the project; else SWANLAB_WORKSPACE, else you."
        },
    )
    experiment_name: str | None = field(
        default=None, metadata={"help": "The experiment's name; else SWANLAB_EXP_NAME, else the run's own."}
    )
    description: str | None = field(
        default=None, metadata={"help": "Its description; else SWANLAB_DESCRIPTION, else run.notes."}
    )
    group: str | None = field(
        default=None, metadata={"help": "Its group; else SWANLAB_GROUP, else run.group."}
    )
    tags: tuple[str, ...] = field(
        default=(), metadata={"help": "Its tags, 30 at most; else SWANLAB_TAGS, else run.tags."}
    )
    dir: str | None = field(
        default=None,
        metadata={
            "help": "Where to store offline runs; else SWANLAB_LOG_DIR, else SWANLAB_LOGDIR, else swanlog/."
        },
    )


class SwanLabUnusable(Unusable):
    """What makes SwanLab unusable."""

    vendor = "SwanLab"
    another_folder = f"{Unusable.another_folder}, or SWANLAB_LOG_DIR"


def found_settings(options: SwanLabOptions, name: str) -> Any:
    """The settings SwanLab would use with the `options` of the tracker `name`. Raises `SwanLabUnusable`."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError
    from swanlab.sdk import Settings

    if options.mode == "local" or (options.mode is None and os.environ.get("SWANLAB_MODE") == "local"):
        detail = "the mode `local` needs SwanLab's old dashboard, which is no longer maintained"
        remedy = "use `offline`, which keeps the run here until `swanlab sync` sends it"
        raise SwanLabUnusable("bad_option", detail, remedy)
    if options.mode is not None and options.mode not in MODES:
        raise SwanLabUnusable("bad_option", f"mode is {options.mode!r}", f"use {', '.join(MODES)}")
    given = {
        "mode": options.mode,
        "log_dir": Path(options.dir).expanduser().absolute() if options.dir else None,
        "project": {"name": options.project, "workspace": options.workspace},
    }
    where = "SwanLab's variables and files"
    try:
        with project_variable() as project:
            settings = Settings()
            own = settings.project.name or project or "fmstune"
            where = _PROJECT if own == project else where
            settings.merge_settings({"project": {"name": own}})
            where = f"trackers.{name}"
            settings.merge_settings(_given(given))  # reads all of them again
    except ValidationError as error:  # its own message quotes the value, which may be a key
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc'])) or 'a value'}: {first['msg']}"
        raise SwanLabUnusable("bad_option", f"{where}: {said}", f"correct {where}") from None
    except OSError as error:
        unread = f"{error.filename or where} cannot be read"
        raise SwanLabUnusable("no_permission", unread, SwanLabUnusable.another_folder) from error
    except (SettingsError, ValueError) as error:
        raise SwanLabUnusable("bad_option", f"{where}: {error}".rstrip("."), f"correct {where}") from None
    return settings


@contextmanager
def project_variable() -> Iterator[str | None]:
    """The project that transformers' own callback reads from SWANLAB_PROJECT. The SDK expects JSON with a
    project's settings there, and fails on a name."""
    value = os.environ.get(_PROJECT)
    if not value or value.lstrip().startswith("{"):
        yield None
        return
    del os.environ[_PROJECT]
    try:
        yield value
    finally:
        os.environ[_PROJECT] = value


def _given(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _given(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value not in (None, {})}


def start_record(
    options: SwanLabOptions, settings: Any, start: RunStart, run_id: str, notes: list[str]
) -> Any:
    """SwanLab's start record: the tracker's `options` win over SwanLab's own settings, and these over the
    run's labels. What had to be cut is added to `notes`."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.proto.swanlab.run.v1.run_pb2 import ResumeMode, StartRecord

    found = settings.experiment
    tags = options.tags or tuple(found.tags) or start.tags
    kept = list(dict.fromkeys(utf8(tag)[:_MOST_NAME] for tag in tags if tag))
    if len(kept) > _MOST_TAGS:
        notes.append(f"its tags there are the first {_MOST_TAGS}")
    said = StartRecord(
        project=settings.project.name,
        workspace=settings.project.workspace,
        public=settings.project.public,
        name=_fitted(options.experiment_name or found.name or start.name, "name", _MOST_NAME, notes),
        color=found.color,
        description=_fitted(
            options.description or found.description or start.notes, "description", _MOST_NOTES, notes
        ),
        job_type=found.job_type,
        group=_fitted(options.group or found.group or start.group, "group", _MOST_NAME, notes),
        tags=kept[:_MOST_TAGS],
        id=run_id,
        resume=ResumeMode.RESUME_MODE_ALLOW,
    )
    said.started_at.GetCurrentTime()
    return Record(start=said)


def _fitted(text: str | None, what: str, most: int, notes: list[str]) -> str | None:
    if text is None:
        return None
    text = utf8(text)
    if len(text) > most:
        notes.append(f"its {what} there is cut to {most} characters")
    return text[:most]
