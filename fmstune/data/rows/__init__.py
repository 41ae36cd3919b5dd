"""Rows in a known shape: columns are recognised, and messages converted to one form."""
