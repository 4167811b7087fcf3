"""The container steps: ``component.py`` is what Kubeflow sees, ``__main__.py`` what runs in the container."""
