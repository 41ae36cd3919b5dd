"""A run, from its configuration to its end: its directory, tracking, card and resume."""
