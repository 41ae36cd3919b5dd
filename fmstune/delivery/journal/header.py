"""The first line of a journal, which identifies the run, and its copy in `journal.place` beside it, for a
journal whose first line is damaged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.encoding import body, is_intact, numbered
from fmstune.delivery.journal.events import name_of
from fmstune.layout import PLACE_NAME
from fmstune.system.files import read_text
from fmstune.trackers.values.plain import text_of

VERSION = 1


class JournalError(Exception):
    """The file is not a journal, or of a later version than this fmstune can read."""

    exit_code = 2


class LaterJournal(JournalError):
    """The journal was written by a later version of fmstune."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line: which run this is. `id` is unique, `run` is its name, `cwd` the directory that relative
    paths in the trackers' options start from. Events are numbered from `after` + 1; `after` is 0 except for a
    run that continues the tracker runs of another one. Its labels (`group`, `tags`, `notes`) may change in a
    session that resumes it: see `labels`."""

    id: str
    run: str
    time: float
    cwd: str
    after: int = 0
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None

    def fields(self) -> dict[str, Any]:
        """Its fields in the line, without the number and the checksum."""
        first: dict[str, Any] = {"kind": "header", "version": VERSION, "run": self.run}
        first |= {"id": self.id, "time": self.time, "cwd": self.cwd}
        more = {"after": self.after, "group": self.group, "tags": self.tags, "notes": self.notes}
        return first | {key: value for key, value in more.items() if value}

    def line(self) -> bytes:
        """The journal's first line."""
        return numbered(0, body(self.fields()))


def read_header(line: bytes, path: Path) -> Header:
    """The header in the first line of the journal at `path`. Raises `JournalError`."""
    try:
        return _header_of(json.loads(line) if is_intact(line) else None, path)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise JournalError(
            f"{path} does not begin with a journal's header; it is damaged or not a journal."
        ) from None


def copy_of_header(path: Path) -> Header | None:
    """The copy of the header of the journal at `path`; `None` without one."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        return _header_of(json.loads(read_text(path.with_name(PLACE_NAME)))["header"], path)
    return None


def sorted_by(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The group, the tags and the notes in a header or a resumption."""
    group, tags, notes = raw.get("group"), raw.get("tags") or (), raw.get("notes")
    return {"group": name_of(group), "tags": tuple(map(text_of, tags)), "notes": name_of(notes)}


def _header_of(raw: Any, path: Path) -> Header:
    if raw["kind"] != "header":
        raise ValueError("not a header")
    version = int(raw["version"])
    header = Header(
        str(raw["id"]),
        str(raw["run"]),
        float(raw["time"]),
        str(raw.get("cwd", ".")),
        int(raw.get("after", 0)),
        **sorted_by(raw),
    )
    if version > VERSION:
        raise LaterJournal(
            f"{path} was written by a later fmstune (journal version {version}, this one reads up to "
            f"{VERSION}); upgrade with `pip install -U fmstune`."
        )
    return header
