"""All pipelines, compiled; and one of them as it was last accepted, which `python -m tests.pipelines.golden` accepts anew."""

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
from pipelines.train_retriever import train_retriever, train_retriever_of

WHOLE: dict[str, Callable[[], Any]] = {
    "train_retriever": lambda: train_retriever,
    "retrain": lambda: retrain,
    # Three variants show all that eight do.
    "compare_methods": lambda: comparison_of(variants.load("read-out").variants),
}
RERUNS: dict[str, Callable[[], Any]] = {f"{PREFIX}{step}": functools.partial(rerun_of, step) for step in STEPS}
LOOPS: dict[str, Callable[[], Any]] = {"train_retriever in parts": lambda: train_retriever_of(parts=3)}
PIPELINES = {**WHOLE, **LOOPS, **RERUNS}
ACCEPTED = "train_retriever"
"""The pipeline that is compared word for word; what holds for all of them is said by the contract tests."""
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
    (DIRECTORY / f"{ACCEPTED}.yaml").write_text(compiled(ACCEPTED))
