"""Backbones that are not a directory of safetensors as they come: GGUF files, models in packages, models with fewer layers."""
