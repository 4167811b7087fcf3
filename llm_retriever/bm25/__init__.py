"""Sparse search with Lucene: a Java for it, the index, BM25 and its tuning, and the runs."""
