"""The ledger: how far one tracker's delivery of a run has come. `<run>/tracking/<tracker>.json`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from fmstune.delivery.redaction import process_redactor

State = Literal["complete", "behind", "failed"]

TRACKING_DIR = "tracking"


@dataclass(frozen=True, slots=True)
class Ledger:
    """The delivery of one run to one tracker.

    `delivered` and `total` count events of the journal. Events are numbered from 1 without gaps, so the first
    `delivered` of them have been delivered, up to byte `offset` of the journal, but for `refused` (which the
    tracker would not take) and `missing` (which could not be read from the journal). `safe_*` is the part
    that no kill of the shipper can lose. `closed` tells that the tracker's run has been given its final
    status. `attempts` counts the failures in a row at the event `stuck_at`. A delivery that is `careful`,
    since a process has died of the tracker, notes in `trying` which event it is handing over. `cwd` is the
    directory that relative paths in `options`, and the tracker's defaults, start from. `note` is what the
    tracker has to say to the user.
    """

    tracker: str
    reference: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    cwd: str = ""
    run_id: str | None = None
    url: str | None = None
    note: str | None = None
    delivered: int = 0
    total: int = 0
    offset: int = 0
    safe_delivered: int = 0
    safe_offset: int = 0
    state: State = "behind"
    refused: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    changes: tuple[str, ...] = ()
    closed: bool = False
    stuck_at: int = 0
    attempts: int = 0
    careful: bool = False
    trying: int = 0
    error: str | None = None
    error_time: float | None = None

    def save(self, directory: Path) -> None:
        """Replace the ledger's file in a run's directory, atomically."""
        path = ledger_path(directory, self.tracker)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        # What a tracker says may hold any secret; what the next delivery needs stays as it is.
        needed = {field: getattr(self, field) for field in ("tracker", "reference", "cwd", "run_id")}
        values = process_redactor().mapping(dataclasses.asdict(self)) | needed
        text = json.dumps(values, indent=2, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)


def ledger_path(directory: Path, tracker: str) -> Path:
    """Where the ledger of `tracker` lies; a tracker named by a dotted path is quoted."""
    return directory / TRACKING_DIR / f"{quote(tracker, safe='')}.json"


def load_ledger(directory: Path, tracker: str) -> Ledger | None:
    """The ledger of `tracker`; `None` when there is none.

    A damaged ledger is set aside as `<tracker>.json.damaged`, and the delivery begins again: the journal
    has everything, only the tracker's run id is lost.
    """
    path = ledger_path(directory, tracker)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return _from_raw(raw)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        path.replace(path.with_name(path.name + ".damaged"))
        return None


def all_ledgers(directory: Path) -> list[Ledger]:
    """The ledgers of a run, by name; damaged ones are set aside."""
    from urllib.parse import unquote

    names = [unquote(path.stem) for path in sorted((directory / TRACKING_DIR).glob("*.json"))]
    return [ledger for name in names if (ledger := load_ledger(directory, name)) is not None]


def _from_raw(raw: Mapping[str, Any]) -> Ledger:
    known = {field.name for field in dataclasses.fields(Ledger)}
    values = {key: value for key, value in raw.items() if key in known}
    for count in ("delivered", "total", "offset", "safe_delivered", "safe_offset", "attempts",
                  "stuck_at", "trying"):  # fmt: skip
        if not isinstance(values.get(count, 0), int) or values.get(count, 0) < 0:
            raise ValueError(count)
    for text in ("run_id", "url", "note", "error"):
        if not isinstance(values.get(text), (str, type(None))):
            raise ValueError(text)
    if not isinstance(values.get("cwd", ""), str):
        raise ValueError("cwd")
    if not isinstance(values.get("careful", False), bool):
        raise ValueError("careful")
    for seqs in ("refused", "missing"):
        values[seqs] = tuple(int(seq) for seq in values.get(seqs, ()))
    values["changes"] = tuple(str(change) for change in values.get("changes", ()))
    return Ledger(**{**values, "tracker": str(raw["tracker"]), "options": dict(raw.get("options") or {})})
