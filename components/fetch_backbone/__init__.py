"""Brings the causal LM that everything starts from."""
