"""The configuration: its schema, the sources of its values, and the messages about wrong ones.

Imports neither torch nor the rest of fmstune, so that a typo is reported in a fraction of a second.
"""
