"""Internals of the tracker `aim`: repositories, their checks, and Aim's media objects."""
