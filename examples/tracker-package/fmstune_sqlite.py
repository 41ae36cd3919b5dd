"""A complete tracker for fmstune: runs in an SQLite database. Replace the SQLite calls with your service's.

It may raise any error of SQLite's: it runs in its own process, and fmstune calls it again with the events
that it missed. So it does not catch, retry or print anything.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmstune import Tracker
from fmstune.trackers.records import Limits, MetricPoint, RunStart, Status, TrackerRun

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, name TEXT, status TEXT, error TEXT);
CREATE TABLE IF NOT EXISTS params (run TEXT, name TEXT, value TEXT, PRIMARY KEY (run, name));
CREATE TABLE IF NOT EXISTS metrics (
    run TEXT, source TEXT, seq INTEGER, stage TEXT, step INTEGER, name TEXT, value REAL,
    PRIMARY KEY (run, source, seq, name)
);
"""


@dataclass(frozen=True)
class SqliteOptions:
    """Options of the tracker `sqlite`, typed and checked by fmstune: `[trackers.sqlite]` in TOML."""

    path: str = field(default="runs.db", metadata={"help": "The database file."})


class SqliteTracker(Tracker):
    """Three tables: runs, params, metrics. An event that is delivered twice replaces itself.

    It is identified by its number and the id of fmstune's run (`source`). A run in the database can have
    events of several of fmstune's runs, if one was resumed from a checkpoint of another.
    """

    registered_name = "sqlite"
    description = "runs in an SQLite database"
    # package = "sdk"; install_hint = "pip install sdk"   # shown if it is not installed
    Config = SqliteOptions
    config: SqliteOptions
    # What fmstune may rely on; checked by test_fmstune_sqlite.py.
    idempotent = True  # an event that is delivered twice changes nothing
    # SQLite has no NaN, and only 64-bit integers: fmstune adapts values to that, and reports it.
    limits = Limits(nan=False, integer_bits=64)

    def open(self, start: RunStart) -> TrackerRun:
        self.run = start.tracker_run_id or uuid.uuid4().hex  # a resumed run continues the earlier one
        self.source = start.run_id or self.run
        self.database = sqlite3.connect(self.config.path)
        self.database.executescript(_TABLES)
        self.database.execute("INSERT OR IGNORE INTO runs (id, name) VALUES (?, ?)", (self.run, start.name))
        return TrackerRun(self.run, f"sqlite:///{self.config.path}")

    def track_point(self, point: MetricPoint) -> None:
        where = (self.run, self.source, self.seq, point.stage, point.step)
        rows = [(*where, name, value) for name, value in point.values.items()]
        self.database.executemany("REPLACE INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def set_params(self, params: Mapping[str, Any] | None, name: str | None = None) -> None:
        super().set_params(params, name)  # raises if it is not a mapping
        for key, value in (params or {}).items():
            row = (self.run, f"{name}.{key}", json.dumps(value))
            self.database.execute("REPLACE INTO params VALUES (?, ?, ?)", row)

    def flush(self) -> None:
        self.database.commit()  # fmstune counts events as delivered only after this

    def close(self, status: Status, error: str | None = None) -> None:
        self.database.execute("UPDATE runs SET status = ?, error = ? WHERE id = ?", (status, error, self.run))
        self.flush()
        self.database.close()
