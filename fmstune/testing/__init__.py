"""The conformance kit for trackers: does a tracker keep what it declares, in deliveries that go wrong?

    from fmstune.testing import Delivered, Stored, TrackerConformance

    class TestMine(TrackerConformance):
        tracker = "my_module:MyTracker"
        options = {"path": "mine.db"}

        def read(self, delivered: Delivered) -> Stored:   # optional: what the service holds now
            ...

Without pytest, `examine("my_module:MyTracker", {...}, folder)` says the same in sentences. The deliveries are
fmstune's own, each in a process that may be killed; nothing here needs pytest.
"""

from __future__ import annotations

from fmstune.testing.conformance import TrackerConformance
from fmstune.testing.examination import Examination, examine
from fmstune.testing.findings import Delivered, Findings, Stored

__all__ = ["Delivered", "Examination", "Findings", "Stored", "TrackerConformance", "examine"]
