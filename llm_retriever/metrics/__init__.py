"""Retrieval metrics: TREC's measures and runs, fusion, significance, and the form of an evaluation's file."""
