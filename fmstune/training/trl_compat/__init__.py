"""The private parts of TRL's trainers, transformers' `Trainer` and accelerate that fmstune uses.

Each entry says why the public API is not enough. The rest of fmstune calls these functions and overrides the
methods of `PrivateHooks`, which have names of our own. `tests/training/test_trl_compat.py` checks each name
against the installed packages, so that an upgrade fails there and shows what moved.
"""
