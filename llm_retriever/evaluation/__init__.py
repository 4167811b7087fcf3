"""Runs, metrics, significance and the report: the evidence that a retriever is better than what it is compared with."""
