"""Internals of the tracker `file`: a file that several runs may share, as JSON lines or CSV."""
