"""Runs of other trackers, read from their own storage into fmstune's records."""
