"""Hard negatives: candidates by source (`dense`), the choice among them (`selection`, `negatives`), and statistics of both."""
