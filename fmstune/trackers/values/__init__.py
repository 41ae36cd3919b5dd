"""Convert foreign values to what a tracker can store."""
