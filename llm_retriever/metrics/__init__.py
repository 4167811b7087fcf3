"""Figures of retrieval: TREC's measures and runs, fusion, significance, and what a file of an evaluation must hold."""
