"""The step `build_index`: the corpus as vectors, ready to be searched."""
