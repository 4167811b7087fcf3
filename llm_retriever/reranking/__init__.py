"""Re-ranking by query likelihood, and the analysis of a model's attention while it generates a query."""
