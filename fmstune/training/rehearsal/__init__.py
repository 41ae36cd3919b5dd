"""Fail in the first minute instead of after hours: try the longest batch, saving and evaluation."""
