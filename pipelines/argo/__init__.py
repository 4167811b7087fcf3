"""Predicts the Argo workflow that Kubeflow makes of a compiled pipeline, as far as its size is concerned."""
