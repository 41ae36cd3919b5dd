"""The names of the files of a run, and of the configuration."""

from __future__ import annotations

CONFIG_FILE = "fmstune.toml"
"""What `fmstune train` reads when no file is named."""

CONFIG_NAME = "config.toml"
"""In a run's directory: its configuration, as it ran."""
ERROR_LOG = "error.log"
TRAIN_LOG = "train.log"
"""What others than fmstune printed."""
SKIPPED_ROWS = "skipped_rows.jsonl"
REPORT = "report.html"
DATA_ROWS = "data_rows.json"
"""A few rows as the model saw them."""
TRACKING_DIR = "tracking"
JOURNAL_NAME = "journal.jsonl"
"""In `TRACKING_DIR`."""
FILES_DIR = "files"
"""In `TRACKING_DIR`: what is too large for a line of the journal, by content."""
UNFINISHED = "checkpoint.unfinished"
"""A checkpoint that is being written: it gets its name when it is whole."""
