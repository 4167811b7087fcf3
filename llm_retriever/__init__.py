"""llm-retriever: from a corpus to an evaluated, published LLM dense retriever.

This package knows the methods, the data that flows between the steps, training, indexing and evaluation. It knows
nothing of Kubeflow: ``components`` wraps it into container steps and ``pipelines`` chains those.
"""

__version__ = "0.1.0"
