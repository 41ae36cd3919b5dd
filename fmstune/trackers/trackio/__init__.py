"""Internals of the tracker `trackio`: where it stores runs, and how."""
