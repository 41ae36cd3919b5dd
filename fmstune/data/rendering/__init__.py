"""Rows as text: what the chat template writes, and which of its characters are trained."""
