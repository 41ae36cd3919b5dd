"""The tables of the configuration, and the fields that TRL's installed classes add."""
