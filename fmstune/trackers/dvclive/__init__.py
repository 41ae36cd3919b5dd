"""Internals of the tracker `dvclive`: the files of a run."""
