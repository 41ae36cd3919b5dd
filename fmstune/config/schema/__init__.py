"""The tables of the configuration, and what TRL's installed classes add to them."""
