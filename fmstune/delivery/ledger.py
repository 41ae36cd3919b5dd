"""The ledger: the progress of a run's delivery to one tracker. `<run>/tracking/<tracker>.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from fmstune.delivery.journal.damaged import SUFFIX, set_aside
from fmstune.delivery.spans import EMPTY, Spans, spans_from_json
from fmstune.delivery.suspicion import (
    NOTHING_SUSPECTED,
    Suspicion,
    suspicion_from_json,
    suspicion_of_earlier_version,
)
from fmstune.layout import LAST_NAME, TRACKING_DIR
from fmstune.secrets.redaction import process_redactor
from fmstune.system.files import NotAFile, read_text, replace_text

State = Literal["complete", "behind", "failed"]

_FILE_NAME = re.compile(rf"(.+)\.json(?:{re.escape(SUFFIX)}(?:-\d+)?)?")
_SLOWEST_UPLOAD = 500_000
"""The bytes per second that a working service is expected to reach."""
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a damaged ledger raises."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The delivery of one run to one tracker.

    `delivered` and `total` count events of the journal. Events are numbered from 1 without gaps, so the
    first `delivered` of them have been delivered, up to byte `offset` of the journal, except those that
    the tracker failed on (`suspicion`) and those that could not be read from the journal (`missing`).
    `later` are the kinds of those that only a later version of fmstune can read.
    `safe_*` is the part that no kill of the shipper can lose. `closed`: the tracker's run has its final
    status. Events up to `careful` were on their way when a process died or a flush failed: they are
    delivered one by one, and `trying` is the one that is being delivered. `last_row` is the last metric
    or table that the tracker has stored, `last_given` the last event other than a status. `begun_again`
    counts how often everything had to be delivered again, because the tracker's run had lost it.
    `sending` is the size in bytes of the files that are being delivered now; `refers`: the tracker refers
    to files in place. `cwd` is the directory that relative paths in `options`, and the tracker's
    defaults, start from; `module_path` the one that its plug-in was imported from. `note` is the
    tracker's message for the user. `adapted` are those of the `changes` that the tracker itself made, in
    any process. `place` are the options and variables that decided where the run was stored when it was
    opened, by name; `None` if unknown. `moved` is a sentence if that location has changed. `new_run_id`
    is the id that the tracker is asked to give a new run, until the run is known to have one.
    """

    tracker: str
    reference: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    cwd: str = ""
    module_path: str = ""
    run_id: str | None = None
    new_run_id: str | None = None
    url: str | None = None
    note: str | None = None
    place: Mapping[str, str] | None = None
    moved: str | None = None
    delivered: int = 0
    total: int = 0
    offset: int = 0
    safe_delivered: int = 0
    safe_offset: int = 0
    state: State = "behind"
    suspicion: Suspicion = NOTHING_SUSPECTED
    missing: Spans = EMPTY
    later: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    closed: bool = False
    careful: int = 0
    trying: int = 0
    last_row: int = 0
    last_given: int = 0
    begun_again: int = 0
    sending: int = 0
    refers: bool = False
    error: str | None = None
    error_time: float | None = None

    @property
    def patience(self) -> float:
        """How many seconds longer than usual a call may take: one call sends all files."""
        return self.sending / _SLOWEST_UPLOAD

    @property
    def highest(self) -> int:
        """The highest event number in the ledger."""
        marked = max(self.missing.last, self.suspicion.last)
        return max(self.delivered, self.total, self.trying, self.last_row, marked)

    def save(self, directory: Path) -> None:
        """Replace the ledger's file in a run's directory, atomically."""
        path = ledger_path(directory, self.tracker)
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        fields |= {"suspicion": self.suspicion.to_json(), "missing": self.missing.to_text()}
        # A tracker's messages may contain any secret; what the next delivery needs stays unchanged.
        needed = {
            field: fields[field]
            for field in ("tracker", "reference", "cwd", "module_path", "run_id", "new_run_id")
        }
        text = json.dumps(process_redactor().mapping(fields) | needed, indent=2, default=str)
        if path.is_dir():
            set_aside(path)
        replace_text(path, text + "\n")


def ledger_path(directory: Path, tracker: str) -> Path:
    """The path of the ledger of `tracker`; a dotted path as a tracker's name is quoted."""
    return directory / TRACKING_DIR / f"{quote(tracker, safe='')}.json"


def load_ledger(directory: Path, tracker: str) -> Ledger | None:
    """The ledger of `tracker`; `None` when there is none.

    A damaged ledger is set aside as `<tracker>.json.damaged`. The copy in the newest checkpoint replaces one
    that is damaged or deleted; without a copy the delivery starts again: the journal has everything, only the
    tracker's run id is lost.
    """
    path = ledger_path(directory, tracker)
    try:
        return _read(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (*_DAMAGED, IsADirectoryError, NotAFile):
        with contextlib.suppress(FileNotFoundError):  # another process has done it
            set_aside(path)
    return _copy_in_checkpoint(directory, tracker)


def damage(directory: Path, tracker: str) -> str | None:
    """The message about a tracker whose ledger could not be read; `None` if none was damaged."""
    path = ledger_path(directory, tracker)
    aside = path.with_name(path.name + SUFFIX)
    if not os.path.lexists(aside):
        return None
    return f"its ledger was damaged and is set aside as {aside.name}; what was delivered before is unknown"


def all_ledgers(directory: Path) -> list[Ledger]:
    """The ledgers of a run, by name; damaged ones are set aside."""
    files = _files(directory, "*.json*")
    for checkpoint in directory.glob("checkpoint-*"):
        files += _files(checkpoint, "*.json")
    names = {match.group(1) for path in files if (match := _FILE_NAME.fullmatch(path.name))}
    ledgers = []
    for name in map(unquote, sorted(names)):
        ledger = load_ledger(directory, name)
        if ledger is None and (error := damage(directory, name)):
            ledger = Ledger(name, error=error)
        if ledger is not None:
            ledgers.append(ledger)
    return ledgers


def highest_known(directory: Path) -> int:
    """The highest event number in any ledger or checkpoint of a run: in a folder restored from a backup, or
    after a power cut, each may be newer than the journal or the others."""
    ledgers, highest = all_ledgers(directory), 0
    for checkpoint in directory.glob("checkpoint-*"):
        ledgers += load_ledgers(checkpoint)
        highest = max(highest, _last_before(checkpoint))
    return max((highest, *(ledger.highest for ledger in ledgers)))


def _last_before(checkpoint: Path) -> int:
    """The number of the last event before a checkpoint; 0 if unknown, as in those of earlier versions."""
    with contextlib.suppress(OSError, ValueError):
        found = re.fullmatch(r"(\d{1,15})\s*", read_text(checkpoint / TRACKING_DIR / LAST_NAME))
        return int(found[1]) if found else 0
    return 0


def record_last(checkpoint: Path, number: int) -> None:
    """Record the number of the last event before a checkpoint. Raises `OSError`."""
    (checkpoint / TRACKING_DIR).mkdir(exist_ok=True)
    (checkpoint / TRACKING_DIR / LAST_NAME).write_text(f"{number}\n", encoding="utf-8")


def load_ledgers(folder: Path) -> list[Ledger]:
    """The readable ledgers in a run's folder or in a checkpoint."""
    found = []
    for path in _files(folder, "*.json"):
        with contextlib.suppress(OSError, *_DAMAGED):
            found.append(_read(path))
    return found


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files next to a journal, or in a checkpoint, which its run may remove meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return list((folder / TRACKING_DIR).glob(pattern))
    return []


def _copy_in_checkpoint(directory: Path, tracker: str) -> Ledger | None:
    found = []
    for checkpoint in directory.glob("checkpoint-*"):
        with contextlib.suppress(OSError, *_DAMAGED):
            found.append((int(checkpoint.name.rpartition("-")[2]), _read(ledger_path(checkpoint, tracker))))
    return max(found, key=lambda copy: copy[0])[1] if found else None


def _read(path: Path) -> Ledger:
    return _from_raw(json.loads(read_text(path)))


def _from_raw(raw: Mapping[str, Any]) -> Ledger:
    known = {field.name for field in dataclasses.fields(Ledger)}
    values = {key: value for key, value in raw.items() if key in known}
    counts = ("delivered", "total", "offset", "safe_delivered", "safe_offset", "trying", "last_row")
    for count in (*counts, "last_given", "begun_again", "sending", "careful"):
        if not isinstance(values.get(count, 0), int) or values.get(count, 0) < 0:
            raise ValueError(count)
    for text in ("run_id", "new_run_id", "url", "note", "moved", "error"):
        if not isinstance(values.get(text), (str, type(None))):
            raise ValueError(text)
    for text in ("cwd", "module_path"):
        if not isinstance(values.get(text, ""), str):
            raise ValueError(text)
    if not isinstance(values.get("refers", False), bool):
        raise ValueError("refers")
    place = values.get("place")
    if place is not None and not all(isinstance(value, str) for value in dict(place).values()):
        raise ValueError("place")
    values.setdefault("last_row", values.get("delivered", 0))  # an earlier version: any event
    values["missing"] = spans_from_json(values.get("missing", ()))
    known_suspicion = "suspicion" in raw
    values["suspicion"] = (
        suspicion_from_json(raw["suspicion"]) if known_suspicion else suspicion_of_earlier_version(raw)
    )
    values["changes"] = tuple(str(change) for change in values.get("changes", ()))
    values["adapted"] = tuple(str(change) for change in values.get("adapted", ()))
    values["later"] = tuple(str(kind) for kind in values.get("later", ()))
    return Ledger(**{**values, "tracker": str(raw["tracker"]), "options": dict(raw.get("options") or {})})
