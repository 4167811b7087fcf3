"""Where artifacts are kept: one interface, two kinds of place. `llm_retriever.store` is the door to it."""
