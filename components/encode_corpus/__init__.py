"""The step `encode_corpus`: a part of the corpus as vectors, beside others that encode the other parts."""
