"""A run, from its configuration to its end: directory, tracking, resume and model card."""
