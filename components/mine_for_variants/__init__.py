"""The step `mine_for_variants`: mines negatives, and hands on all data of a comparison's variants as one artifact."""
