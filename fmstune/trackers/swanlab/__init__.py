"""Beneath the tracker `swanlab`: its settings, its service, its folders, and the records that both take."""
