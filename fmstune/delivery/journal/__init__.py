"""The journal: the run's record on disk, one strict JSON object per line."""
