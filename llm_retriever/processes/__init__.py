"""How programs run and end: in processes of their own, on the GPUs that were asked for, into pipes that may be closed."""
