"""Resolve the names of data and models, without heavy imports."""
