"""Several processes: ranks, signals, torchrun, and how their failures are reported."""
