"""Recognise secrets, by name and by form, and hide them from files, logs, terminals and trackers."""
