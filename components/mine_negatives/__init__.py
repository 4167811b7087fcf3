"""The step `mine_negatives`: hard negatives for the training queries, and BM25 runs for the other splits."""
