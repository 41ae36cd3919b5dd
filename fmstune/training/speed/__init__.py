"""Faster ways to the same results: the loss, batches without padding, attention over rows."""
