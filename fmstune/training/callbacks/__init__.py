"""Callbacks between steps: progress, samples, stopping."""
