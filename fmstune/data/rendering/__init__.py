"""Rows as text: what the chat template writes, and which characters of it are trained."""
