"""Internals of the tracker `swanlab`: its settings, its service, its folders, and their records."""
