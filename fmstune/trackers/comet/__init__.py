"""Internals of the tracker `comet`: its settings, its service and archives, and the items they store."""
