"""The compiled pipelines as they were last accepted; `python -m tests.pipelines.golden` accepts them as they are now."""

from __future__ import annotations

import functools
import re
import tempfile
from pathlib import Path

from pipelines import variants
from pipelines.comparison import comparison_of
from pipelines.compilation import compile_pipeline
from pipelines.train_retriever import train_retriever

PIPELINES = {
    "train_retriever": train_retriever,
    # Three variants show all that eight do.
    "compare_methods": comparison_of(variants.load("read-out", train_retriever).variants),
}
DIRECTORY = Path(__file__).with_name("golden")


@functools.cache
def compiled(name: str) -> str:
    """The YAML of a pipeline, without the SDK's version."""
    with tempfile.TemporaryDirectory() as directory:
        text = compile_pipeline(PIPELINES[name], Path(directory) / "pipeline.yaml").read_text()
    return re.sub(r"sdkVersion: kfp-[\d.]+", "sdkVersion: kfp-*", text)


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for pipeline in PIPELINES:
        (DIRECTORY / f"{pipeline}.yaml").write_text(compiled(pipeline))
