"""Training on several nodes: a step renders a Kubeflow Trainer TrainJob, follows it, and takes over what it made.

Everything that a node needs and leaves goes through the object store, below the step's checkpoint prefix.
"""
