"""What makes a tracker unusable, and the folders that trackers write to, which may not exist yet."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar, NamedTuple

from fmstune.system.files import is_writable
from fmstune.trackers.records import Check, CheckState, TrackerOptionError, utf8

_LONGEST_NAME = 100


class Unusable(TrackerOptionError):
    """What makes a tracker unusable, as an error for `open` and as the `Check` for `check`. A subclass names
    its `vendor`, with which the error begins, and says how to choose another folder."""

    vendor: ClassVar[str] = ""
    another_folder: ClassVar[str] = "choose another folder with the option dir"

    def __init__(self, state: CheckState, detail: str, remedy: str = "", server: str = "") -> None:
        begin = f"{self.vendor}: " if self.vendor else ""
        super().__init__(f"{begin}{detail}" + (f"; {remedy}." if remedy else "."))
        self.check = Check(state, detail, remedy, server=server)


class Obstacle(NamedTuple):
    """Why nothing can be written to a folder: the state of a check, and a sentence."""

    state: CheckState
    detail: str


def folder_obstacle(folder: Path) -> Obstacle | None:
    """Why files cannot be created in a folder, which may not exist yet; `None` if they can."""
    # Not `Path.exists`, which raises if a parent may not be entered.
    places = (folder, *folder.absolute().parents)
    existing = next(path for path in places if os.path.lexists(path))
    if not existing.is_dir():
        return Obstacle("bad_option", f"{existing} is not a folder")
    if not is_writable(existing):
        return Obstacle("no_permission", f"{existing} cannot be written to")
    return None


def file_obstacle(path: Path) -> Obstacle | None:
    """Why a file cannot be written, or created if it does not exist; `None` if it can."""
    if not os.path.lexists(path):
        return folder_obstacle(path.absolute().parent)
    if path.is_dir():
        return Obstacle("bad_option", f"{path} is a folder")
    if not os.access(path, os.R_OK | os.W_OK):
        return Obstacle("no_permission", f"{path} cannot be read and written to")
    return None


def require_writable(folder: Path, error: type[Unusable]) -> None:
    """Raise `error` if files cannot be created in a folder. Some SDKs would fall back to a temporary folder,
    where nobody looks."""
    if (obstacle := folder_obstacle(folder)) is not None:
        raise error(*obstacle, error.another_folder, str(folder))


def check_folder(folder: Path, given: str, files: str, remedy: str) -> Check:
    """The check of a tracker that writes such `files` to a folder, which was `given` so."""
    if "://" in given:
        return Check("bad_option", f"{given} is not a folder of this machine", remedy)
    place = folder.expanduser().absolute()
    if (obstacle := folder_obstacle(place)) is not None:
        return Check(*obstacle, remedy)
    return Check("ok", f"writes {files}{will_be_created(place)}", server=str(place))


def will_be_created(path: Path) -> str:
    """The end of a sentence about a file or folder that may not exist yet."""
    return "" if path.exists() else ", will be created"


def name_of_folder(text: str) -> str:
    """A run's name as the name of its folder; empty if nothing of it can be used."""
    return re.sub(r"[/\0]", "_", utf8(text))[:_LONGEST_NAME].strip(". ")
