"""A causal LM and its wording: the card, prompts, masks and batches, and models that come as GGUF files or packages."""
