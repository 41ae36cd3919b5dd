"""The conformance kit for trackers: check that a tracker does what it declares, even if deliveries fail.

    from fmstune.testing import Delivered, Stored, TrackerConformance

    class TestMine(TrackerConformance):
        tracker = "my_module:MyTracker"
        options = {"path": "mine.db"}

        def read(self, delivered: Delivered) -> Stored:   # optional: return what the service stores
            ...

Without pytest, `examine("my_module:MyTracker", {...}, folder)` reports the same in sentences. It uses
fmstune's own delivery, in processes that may be killed; nothing here needs pytest.
"""

from __future__ import annotations

from fmstune.testing.conformance import TrackerConformance
from fmstune.testing.examination import Examination, examine
from fmstune.testing.findings import Delivered, Findings, Stored

__all__ = ["Delivered", "Examination", "Findings", "Stored", "TrackerConformance", "examine"]
