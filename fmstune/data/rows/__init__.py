"""Rows in a known shape: columns are recognised, and messages brought into one form."""
