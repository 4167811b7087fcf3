"""Writing a retriever for programs that do not know this library, and proving that they get the same vectors."""
