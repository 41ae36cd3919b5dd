"""Checks across settings and of installed packages that need neither data nor model."""
