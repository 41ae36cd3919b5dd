"""Cheaper ways to the same numbers: the loss, batches without padding, attention over rows."""
