"""Internals of the tracker `mlflow`: its check, media, and the names and tags of a run."""
