"""Training: one call for both stages, with chunks of like length, checkpoints, DeepSpeed and several processes or nodes."""
