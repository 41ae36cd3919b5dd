"""Internals of the tracker `aim`: repositories, servers, their checks, and Aim's media objects."""
