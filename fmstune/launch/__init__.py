"""Run several processes: ranks, signals, torchrun, and reports of their failures."""
