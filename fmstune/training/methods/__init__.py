"""The training methods with TRL's trainers: one file each, imported on use."""
