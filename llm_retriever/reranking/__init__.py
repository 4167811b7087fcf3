"""Re-ranking by query likelihood, and where a model looks while it generates a query."""
