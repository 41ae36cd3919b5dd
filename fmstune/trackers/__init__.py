"""The tracker interface, the registry of trackers, and one file for each tracker, over a folder of its name."""
