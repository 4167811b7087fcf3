"""Exports a retriever for programs that do not know this library, and proves that they get the same vectors."""
