"""The program of the step `fingerprint_sources`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import FingerprintSettings


def run(step: StepRun[FingerprintSettings]) -> None:
    """Lists both sources and reduces each listing to a digest."""
    from llm_retriever.fingerprint import backbone_fingerprint, corpus_fingerprint

    step.results["corpus_fingerprint"] = corpus_fingerprint(step.settings.corpus_uri)
    step.results["backbone_fingerprint"] = backbone_fingerprint(step.settings.backbone)
    step.results["part_numbers"] = list(range(step.settings.parts))


STEP = Step(
    name="fingerprint_sources",
    settings=FingerprintSettings,
    run=run,
    results={
        "corpus_fingerprint": "Changes when the corpus changes.",
        "backbone_fingerprint": "Changes when the backbone changes.",
        "part_numbers": "Numbers of the parts that the corpus is encoded in; Kubeflow cannot count for itself.",
    },
)

if __name__ == "__main__":
    STEP.main()
