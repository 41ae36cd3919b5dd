"""The resource scanner: sample a run's use of the machine during training."""
