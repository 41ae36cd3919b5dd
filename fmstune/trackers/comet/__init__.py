"""Beneath the tracker `comet`: its settings, its service and its archives, and what both take."""
