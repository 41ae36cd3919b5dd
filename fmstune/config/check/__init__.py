"""Checking a value against its type, and the words of the messages when it is wrong."""
