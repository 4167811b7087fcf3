"""Stage two: contrastive tuning with hard and in-batch negatives."""
