"""Beneath the tracker `wandb`: its settings and account, its offline folders, and what W&B shows."""
