"""The configuration: its schema, where values come from, and the messages when they are wrong.

Imports neither torch nor anything else of fmstune: a typing mistake is answered in a fraction of a second.
"""
