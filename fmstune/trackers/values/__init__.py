"""Foreign values in the form that a tracker can hold."""
