"""The program of the step `fingerprint_sources`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import FingerprintSettings


def run(step: StepRun[FingerprintSettings]) -> None:
    """Lists both sources, reduces each listing to a digest, and looks whether these were judged already."""
    from llm_retriever.promotion.fingerprint import backbone_fingerprint, corpus_fingerprint, state

    settings = step.settings
    corpus, backbone = corpus_fingerprint(settings.corpus_uri), backbone_fingerprint(settings.backbone)
    found = state(corpus, backbone, settings.recipe, settings.published_uri)
    step.results.update(
        corpus_fingerprint=corpus,
        backbone_fingerprint=backbone,
        fingerprint=found.fingerprint,
        changed=found.changed,
        production_uri=found.production_uri,
    )


STEP = Step(
    name="fingerprint_sources",
    stage="fingerprint",
    cached=False,
    settings=FingerprintSettings,
    run=run,
    results={
        "corpus_fingerprint": "Changes when the corpus changes.",
        "backbone_fingerprint": "Changes when the backbone changes.",
        "fingerprint": "Changes when the corpus, the backbone or the recipe changes.",
        "changed": "False only if a record in published_uri says that this very fingerprint has been judged.",
        "production_uri": "URI of the version in production; empty if there is none.",
    },
)

if __name__ == "__main__":
    STEP.main()
