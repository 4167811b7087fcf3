"""Hybrid search: a retriever and BM25 as one ranking."""
