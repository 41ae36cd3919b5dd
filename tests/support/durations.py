"""The slowest test files, which run first."""

from __future__ import annotations

LONGEST = (
    "faults/test_faults.py", "cli/test_train.py", "training/test_architectures.py",
    "testing/test_built_in.py", "training/test_methods.py", "trackers/test_read_back.py",
    "delivery/test_killed_at_open.py", "training/test_each_row_once.py", "data/test_templates.py",
    "run/test_run.py", "training/test_memory.py",
    "models/test_adapters.py", "trackers/test_any_order.py", "report/test_live.py", "report/test_page.py",
    "report/test_import.py", "data/test_stream.py", "launch/test_ranks_end.py",
    "delivery/test_vanishing.py", "trackers/test_media.py", "training/test_every_setting.py",
    "trackers/test_hf_integrations.py", "trackers/test_labels.py", "run/test_resume.py",
    "trackers/test_artifacts.py", "trackers/test_mlflow_tracker.py", "models/test_generate.py",
    "system/test_threads.py", "delivery/test_shippers.py",
)  # fmt: skip
"""Ten seconds of CPU and more, most first."""
RANKS = {f"tests/{name}": rank for rank, name in enumerate(LONGEST)}
"""Their places in the order of a session."""
