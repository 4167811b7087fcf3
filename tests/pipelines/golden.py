"""The compiled pipelines as they were last accepted; `python -m tests.pipelines.golden` accepts them as they are now."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pipelines import variants
from pipelines.comparison import comparison_of
from pipelines.compilation import compile_pipeline
from pipelines.rerun import PREFIX, STEPS, rerun_of
from pipelines.retrain import retrain
from pipelines.train_retriever import train_retriever

WHOLE: dict[str, Callable[[], Any]] = {
    "train_retriever": lambda: train_retriever,
    "retrain": lambda: retrain,
    # Three variants show all that eight do.
    "compare_methods": lambda: comparison_of(variants.load("read-out", train_retriever).variants),
}
RERUNS: dict[str, Callable[[], Any]] = {f"{PREFIX}{step}": functools.partial(rerun_of, step) for step in STEPS}
PIPELINES = {**WHOLE, **RERUNS}
DIRECTORY = Path(__file__).with_name("golden")


@functools.cache
def compiled(name: str) -> str:
    """Both YAML documents of a pipeline, without the SDK's version and the comment at their head, which repeats the form."""
    with tempfile.TemporaryDirectory() as directory:
        text = compile_pipeline(PIPELINES[name](), Path(directory) / "pipeline.yaml").read_text()
    text = re.sub(r"\A(#.*\n)+", "", text)
    return re.sub(r"sdkVersion: kfp-[\d.]+", "sdkVersion: kfp-*", text)


@functools.cache
def documents(name: str) -> list[dict[str, Any]]:
    """The same, read: the pipeline, and what is particular to Kubernetes."""
    return list(yaml.load_all(compiled(name), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for pipeline in PIPELINES:
        (DIRECTORY / f"{pipeline}.yaml").write_text(compiled(pipeline))
    for path in DIRECTORY.glob("*.yaml"):
        if path.stem not in PIPELINES:
            path.unlink()
