"""Runs programs: in processes of their own, on the requested GPUs, into pipes that may be closed."""
