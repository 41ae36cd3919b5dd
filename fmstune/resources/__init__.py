"""The resource scanner: what a run takes of its machine, sampled beside the training."""
