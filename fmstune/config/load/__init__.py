"""Defaults, the TOML file, flags and `--set`, laid on one another to one checked configuration."""
