"""Internals of the tracker `wandb`: settings, account, offline folders, and W&B's media objects."""
