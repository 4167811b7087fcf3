"""A retriever with random weights, as tune_retriever writes it."""

from tests.indexing.conftest import retriever_directory  # noqa: F401
