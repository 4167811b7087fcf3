"""Hard negatives: who finds candidates (`sparse`, `dense`), which are kept (`selection`, `negatives`), what came of it."""
