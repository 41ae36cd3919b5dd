"""The commands: they parse, call, and print.

Heavy imports happen inside the commands that need them.
"""
