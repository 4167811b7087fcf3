"""The step `compare`: the evaluations of several variants side by side."""
