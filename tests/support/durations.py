"""The slowest test files, which run first."""

from __future__ import annotations

LONGEST = (
    "faults/test_faults.py", "trackers/test_read_back.py", "cli/test_train.py", "delivery/test_shippers.py",
    "trackers/test_clearml_tracker.py", "training/test_methods.py", "training/test_each_row_once.py",
    "trackers/test_any_order.py", "test_suite.py", "trackers/test_hf_callback_ends.py",
    "testing/test_built_in.py", "training/test_background_checkpoints.py", "run/test_run.py",
    "training/test_best.py", "training/test_fsdp.py", "trackers/test_swanlab_again.py", "data/test_stream.py",
    "delivery/test_delivery_model.py", "delivery/test_refusals.py", "training/test_sdks.py",
    "training/test_memory.py", "models/test_adapters.py", "delivery/test_guarded_model.py",
    "trackers/test_hf_integrations.py", "launch/test_ranks_end.py", "trackers/test_file_values.py",
    "report/test_reported_events.py", "report/test_page.py",
)  # fmt: skip
"""Files that take eighteen seconds or more in a session with four workers, slowest first."""
RANKS = {f"tests/{name}": rank for rank, name in enumerate(LONGEST)}
"""Their positions in the order of a session."""
