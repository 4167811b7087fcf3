"""Stage one: what is done to a causal LM before it is tuned to retrieve."""
