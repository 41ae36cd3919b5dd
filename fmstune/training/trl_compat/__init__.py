"""What is private to TRL's trainers, transformers' `Trainer` and accelerate, and is used all the same.

Each entry says which public way was not enough. The rest of fmstune calls these functions, and overrides
the methods of `PrivateHooks` under names of ours. `tests/training/test_trl_compat.py` checks each name with
the installed packages, so that an upgrade fails there and says what moved.
"""
