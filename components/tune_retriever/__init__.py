"""The step `tune_retriever`: stage two, contrastive tuning."""
