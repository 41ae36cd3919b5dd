"""Inspect a resolved configuration: explain, compare and write it."""
