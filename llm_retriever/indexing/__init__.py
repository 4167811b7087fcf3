"""A corpus as vectors on disk, and the exact search over them."""
