"""The pipeline that turns a corpus into an evaluated, published retriever.

Compile it with `make compile`, or with `kfp dsl compile --py pipelines/train_retriever.py --output train_retriever.yaml`.
"""

from typing import Any

from kfp import dsl

from components.definition import with_arguments, with_signature
from pipelines.chain import looked_at, trained
from pipelines.encoding import encode_in_parts
from pipelines.form import SETTINGS, meanings, signature
from pipelines.pods import counted

STAGES = tuple(stage for stage in SETTINGS if stage != "compare")
FORM = signature(STAGES)


def train_retriever_of(parts: int) -> Any:
    """Builds the pipeline `train-retriever`.

    Args:
        parts: Pods that encode the corpus at the same time.
    """

    encode = encode_in_parts(parts)

    def train_retriever(*values: Any) -> None:
        """Turns a corpus with queries into an evaluated LLM dense retriever, and publishes it when it is better."""
        form = dict(zip(FORM.parameters, values, strict=True))
        # Production is measured and refreshed by the runs of a schedule alone: this may be a trial on another corpus.
        trained(form, looked_at(form)._replace(fingerprint="", production_uri=""), encode)

    documented = with_arguments(meanings(FORM.parameters))(with_signature(train_retriever, FORM))
    return counted(dsl.pipeline(name="train-retriever")(documented))


train_retriever = train_retriever_of(parts=1)
