"""Hard negatives: who finds the candidates (`bm25`), and which of them are kept (`selection`, `negatives`)."""
