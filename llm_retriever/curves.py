"""Training curves as one self-contained HTML page."""

from __future__ import annotations

from llm_retriever.training import TrainingLog


def curves_html(log: TrainingLog, title: str) -> str:
    """A self-contained HTML page that plots loss and learning rate over the updates, as inline SVG."""
    raise NotImplementedError
