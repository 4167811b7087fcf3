"""The step `evaluate`: metrics, significance tests against the baselines, and a report."""
