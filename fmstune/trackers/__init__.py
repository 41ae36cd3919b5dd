"""The tracker interface, the registry of trackers, and one file for each built-in tracker, over a folder of its name."""
