"""Internals of the tracker `clearml`: its server, its offline sessions, and the events that both store."""
