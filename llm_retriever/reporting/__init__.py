"""Pages that show an evaluation or a comparison: charts, tables, verdicts, examples."""
