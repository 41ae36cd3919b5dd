"""Models: found, loaded, adapted, merged, saved, and asked for text."""
