"""Check values against their types, and word the error messages."""
