"""Beneath the tracker `aim`: its repositories, what may be wrong with them, and what Aim shows."""
