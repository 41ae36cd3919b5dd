"""Rules over several settings, and over what is installed, that need no data and no model."""
