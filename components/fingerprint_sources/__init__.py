"""Looks at the sources, so that changed ones are not taken from the cache."""
