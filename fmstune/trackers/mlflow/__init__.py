"""Beneath the tracker `mlflow`: its check, what it shows, and what a run is called there."""
