"""The step `run_variant`: both training stages, the index and the evaluation of one variant of a comparison."""
