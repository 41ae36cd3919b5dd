"""Check that the tracker does what it declares: fmstune's conformance kit delivers runs to it.

python -m pytest -s
"""

from __future__ import annotations

import json
import sqlite3
from typing import ClassVar

from fmstune.testing import Delivered, Stored, TrackerConformance


class TestSqlite(TrackerConformance):
    tracker = "fmstune_sqlite:SqliteTracker"
    options: ClassVar = {"path": "runs.db"}  # in a new folder for each run

    def read(self, delivered: Delivered) -> Stored:
        """Read a run from the database. Without this, stored and tracked data are not compared."""
        with sqlite3.connect(delivered.folder / "runs.db") as database:
            points = [
                (f"{stage}/{name}" if stage else name, step, value)
                for stage, name, step, value in database.execute(
                    "SELECT stage, name, step, value FROM metrics"
                )
            ]
            params = {
                name: json.loads(value) for name, value in database.execute("SELECT name, value FROM params")
            }
            ((status,),) = database.execute("SELECT status FROM runs")
        return Stored(points, params, status)
