"""Merge defaults, the TOML file, flags and `--set` into one checked configuration."""
