"""A causal LM and its prompts: the card, masks and batches, and models that come as GGUF files or packages."""
