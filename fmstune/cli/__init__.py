"""The commands: parse arguments, call the rest of fmstune, print.

Heavy imports are inside the commands that need them.
"""
