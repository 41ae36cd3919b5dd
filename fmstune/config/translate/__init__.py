"""Translate a configuration of another tool: its settings, with their values, to fmstune's.

`foreign` reads the file, the modules of rules say what each setting is here, `defaults` what the other tool
does where the file is silent, and `translation` puts them together.
"""
