"""The pipelines, their compile and run commands, and the local runner: the only part that imports kfp."""
