"""Where a run was recorded: `<run>/tracking/journal.place`, which also has a copy of its journal's header.

A copy of a run's folder has the same id and numbers, so events added to the copy would be mistaken for
events of the original. Therefore a resumed copy becomes its own run; a folder that was moved stays the same
run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

from fmstune.delivery.journal.events import seq_of
from fmstune.delivery.journal.header import Header, JournalError
from fmstune.delivery.journal.reader import JournalReader
from fmstune.delivery.ledger import Ledger, load_ledgers
from fmstune.layout import JOURNAL_NAME, PLACE_NAME, TRACKING_DIR
from fmstune.system.files import read_text, replace_text

_MOST_EARLIER = 20


def record_place(directory: Path, header: Header) -> None:
    """Record that the run with this header is written here, and where it was before, where its ledgers may
    start their relative paths."""
    here = str(directory.resolve())
    earlier = [path for path in _paths(directory) if path != here]
    place: dict[str, Any] = {"id": header.id, "host": platform.node(), "path": here}
    place |= {"earlier": earlier[-_MOST_EARLIER:], "header": header.fields()}
    path = directory / TRACKING_DIR / PLACE_NAME
    with contextlib.suppress(OSError):  # full disk: a copy then passes for the run, as without the file
        replace_text(path, json.dumps(place) + "\n")


def original_of(directory: Path) -> Path | None:
    """The folder that this one is a copy of; `None` if it is not a copy, or that is unknown: the run was
    recorded on another machine, which may see this very folder under another path."""
    place = _place(directory)
    if place.get("host") != platform.node():
        return None
    original = Path(str(place["path"]))
    try:
        if original.samefile(directory):
            return None
        # Without the run's id it is another run, at the path that this one was moved from.
        return original if place["id"] in _ids(original) else None
    except OSError:
        return None


def moved_with(directory: Path, folder: Path) -> Path | None:
    """The new location of a folder that contained this run's folder, if both were moved together; `None` if
    unknown."""
    here = directory.resolve()
    for recorded in map(Path, reversed(_paths(directory))):
        if recorded == here or not recorded.is_relative_to(folder):
            continue
        below = recorded.relative_to(folder)
        if below.parts and here.parts[-len(below.parts) :] == below.parts:
            return here.parents[len(below.parts) - 1]
    return None


def become_own_run(directory: Path, header: Header) -> None:
    """Make the run in a copied folder its own run, with the id and the name of `header`: its whole journal is
    delivered to new runs of its trackers. Raises `OSError`."""
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
    with contextlib.suppress(JournalError):  # empty, say: its writer gives it a new header
        found = JournalReader(path).header
        header = dataclasses.replace(header, time=found.time, cwd=found.cwd, after=found.after)
        _change_header(path, header)
    record_place(directory, header)


def _change_header(path: Path, header: Header) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with path.open("rb") as old, temporary.open("wb") as new:
        new.write(header.line())
        if seq_of(first := old.readline()):  # an event, as the header is lost
            new.write(first)
        while block := old.read(1 << 20):
            new.write(block)
    temporary.replace(path)


def _ids(directory: Path) -> set[str]:
    """All known ids of the run in a folder."""
    found = {str(_place(directory).get("id", ""))}
    with contextlib.suppress(OSError, JournalError):
        found.add(JournalReader(directory / TRACKING_DIR / JOURNAL_NAME).header.id)
    return found


def _paths(directory: Path) -> list[str]:
    """The paths at which the run was written, the last one last."""
    place = _place(directory)
    earlier = place.get("earlier")
    paths = [*(earlier if isinstance(earlier, list) else ()), place.get("path")]
    return [path for path in paths if isinstance(path, str)]


def _place(directory: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        raw = json.loads(read_text(directory / TRACKING_DIR / PLACE_NAME))
        if isinstance(raw, dict) and {"id", "host", "path"} <= raw.keys():
            return raw
    return {}
