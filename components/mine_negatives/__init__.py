"""The step `mine_negatives`: hard negatives for the training queries, and sparse runs for the other splits."""
