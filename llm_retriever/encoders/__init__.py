"""Published dense encoders, and what they have in common with the retrievers that are made here."""
