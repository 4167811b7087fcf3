"""Step: reads a source, validates, normalises, removes duplicates, splits and fingerprints it."""
