"""Decides whether the retriever replaces the one in production, and publishes it."""
