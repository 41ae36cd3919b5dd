"""What a secret is, by name and by form, and how it is hidden from files, logs, terminals and trackers."""
