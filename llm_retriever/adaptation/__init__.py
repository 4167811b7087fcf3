"""Stage one: adapts a causal LM before it is tuned to retrieve."""
