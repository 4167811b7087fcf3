"""Stores of artifacts: one interface, two kinds of place. `llm_retriever.stores.opening` is the door to it."""
