"""Where a run was recorded: `<run>/tracking/journal.place`. A copy of its folder has the same id and the same
numbers, and what is added there would be taken for what is added here. So a resumed copy becomes a run of
its own; a folder that was moved stays what it is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.reader import VERSION, Header, JournalError, JournalReader
from fmstune.delivery.ledger import Ledger, load_ledgers
from fmstune.layout import JOURNAL_NAME, TRACKING_DIR
from fmstune.system.files import read_text, replace_text

PLACE_NAME = "journal.place"


def note_place(directory: Path, run_id: str) -> None:
    """Write down that the run of this id is recorded here."""
    place = {"id": run_id, "host": platform.node(), "path": str(directory.resolve())}
    path = directory / TRACKING_DIR / PLACE_NAME
    with contextlib.suppress(OSError):  # a full disk: a copy is then taken for the run, as without the file
        replace_text(path, json.dumps(place) + "\n")


def original_of(directory: Path) -> Path | None:
    """The folder of which this one is a copy; `None` when it is none, or when that is unknown: the run was
    recorded on another machine, which may see this very folder under another path."""
    place = _place(directory)
    if place.get("host") != platform.node():
        return None
    original = Path(str(place["path"]))
    try:
        if original.samefile(directory):
            return None
        # Without the run's id it is another run, in the place that this one was moved away from.
        return original if place["id"] in _ids(original) else None
    except OSError:
        return None


def moved_with(directory: Path, folder: Path) -> Path | None:
    """Where a folder is now that held this run's folder, when both were moved together; `None` when nobody
    can tell."""
    recorded = _place(directory).get("path")
    if not isinstance(recorded, str) or not Path(recorded).is_relative_to(folder):
        return None
    below, here = Path(recorded).relative_to(folder), directory.resolve()
    if not below.parts or here.parts[-len(below.parts) :] != below.parts:
        return None
    return here.parents[len(below.parts) - 1]


def become_own_run(directory: Path, header: Header) -> None:
    """Make the run in a copied folder one of its own, with the id and the name of `header`: all of its
    journal is delivered to new runs of its trackers. Raises `OSError`."""
    path = directory / TRACKING_DIR / JOURNAL_NAME
    for folder in (directory, *directory.glob("checkpoint-*")):
        for ledger in load_ledgers(folder):
            Ledger(
                tracker=ledger.tracker,
                reference=ledger.reference,
                options=ledger.options,
                cwd=ledger.cwd,
                module_path=ledger.module_path,
            ).save(folder)
    with contextlib.suppress(JournalError):  # damaged, or empty: its writer gives it a new header
        found = JournalReader(path).header
        own = dataclasses.replace(header, time=found.time, cwd=found.cwd, after=found.after)
        _change_header(path, own)


def _change_header(path: Path, header: Header) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    fields = {"seq": 0, "kind": "header", "version": VERSION, **dataclasses.asdict(header)}
    with path.open("rb") as old, temporary.open("wb") as new:
        old.readline()
        new.write(json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        while block := old.read(1 << 20):
            new.write(block)
    temporary.replace(path)


def _ids(directory: Path) -> set[str]:
    """The ids under which the run in a folder is known."""
    found = {str(_place(directory).get("id", ""))}
    with contextlib.suppress(OSError, JournalError):
        found.add(JournalReader(directory / TRACKING_DIR / JOURNAL_NAME).header.id)
    return found


def _place(directory: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        raw = json.loads(read_text(directory / TRACKING_DIR / PLACE_NAME))
        if isinstance(raw, dict) and {"id", "host", "path"} <= raw.keys():
            return raw
    return {}
