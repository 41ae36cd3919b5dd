"""The tracker interface, the registry of trackers, and a file for each tracker, over a folder of its name."""
