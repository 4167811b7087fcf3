"""The step `adapt_backbone`: stage one, before any contrastive tuning."""
