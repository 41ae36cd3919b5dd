"""Models: locate, load, adapt, merge and save them, and generate text."""
