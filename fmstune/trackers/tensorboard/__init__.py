"""Internals of the tracker `tensorboard`: event files, written and read."""
