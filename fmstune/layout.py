"""The file names of a run and of the configuration."""

from __future__ import annotations

CONFIG_FILE = "fmstune.toml"
"""Read by `fmstune train` when no file is given."""

CONFIG_NAME = "config.toml"
"""In a run's directory: the configuration that it ran with."""
ERROR_LOG = "error.log"
TRAIN_LOG = "train.log"
"""Everything printed by libraries and user code, not by fmstune."""
SKIPPED_ROWS = "skipped_rows.jsonl"
REPORT = "report.html"
DATA_ROWS = "data_rows.json"
"""A few rows as the model saw them."""
TRACKING_DIR = "tracking"
JOURNAL_NAME = "journal.jsonl"
"""In `TRACKING_DIR`."""
FILES_DIR = "files"
"""In `TRACKING_DIR`: values too large for a line of the journal, addressed by content."""
UNFINISHED = "checkpoint.unfinished"
"""A checkpoint that is being written; it is renamed once complete."""
