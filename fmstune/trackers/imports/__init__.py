"""Runs of other trackers, read from their own storage, as what fmstune records."""
