"""What the hardware has and does: memory and disk. It knows nothing of models or configurations."""
