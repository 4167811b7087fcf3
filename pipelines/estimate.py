"""Estimates a run from the arithmetic of its models: GPU-hours, memory, disk and S3, step by step.

`docs/estimate.md` has the formulas and what small runs measured; `benchmarks/estimate.py` measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_retriever.methods import ADAPTATIONS, METHODS, overridden
from llm_retriever.methods.types import Method
from llm_retriever.settings import AdaptationSettings, TuningSettings, build, parameters
from pipelines import artifacts
from pipelines.arithmetic import (
    CHECKPOINT,
    Training,
    encoding_memory,
    forward,
    head_flop,
    training_flop,
    training_memory,
)
from pipelines.artifacts import Sizes
from pipelines.costs import Cost, Workload, as_table
from pipelines.form import POD_OF_A_VARIANT, flat_name
from pipelines.model_shapes import GPUS, SHAPES, Gpu, Shape, shape_of
from pipelines.variants import Variant, of_backbone, of_variant

__all__ = ["GPUS", "SHAPES", "UTILISATION", "Cost", "Gpu", "Workload", "as_table", "estimate", "estimate_comparison"]

UTILISATION = 0.4
ENCODER = Shape(12, 768, 2048, 30_522, 768, 768, tied=True)
"""Stands for a published encoder: as many parameters as BERT-base."""
ENCODER_LENGTH = 256
SCRATCH_LENGTH = 256
"""Tokens of a block in pre-training."""
CHECKPOINT_FILES = 12
"""Requests of a checkpoint beside its weights and states: small files, the mark, the removal of the older one."""
REGISTRY = 12
"""Requests of a promotion beside the files: manifests, the alias, the record."""


@dataclass
class _Run:
    """One variant's parameters with everything that follows from them.

    Attributes:
        in_one_pod: Whether the steps from adaptation to evaluation are parts of one pod.
    """

    given: Mapping[str, Any]
    work: Workload
    gpu: Gpu
    in_one_pod: bool = False
    shape: Shape = field(init=False)
    row: Method = field(init=False)
    number: int = field(init=False)
    sizes: Sizes = field(init=False)

    def __post_init__(self) -> None:
        self.shape = shape_of(self.given)
        self.row = overridden(
            METHODS[self.given["tune_method"]][self.given["tune_recipe"]], self.settings("tune", TuningSettings)
        )
        self.number = 4 if self.given["run_precision"] == "fp32" else 2
        adapter = self.training("tune", self.row.tuning).trained(self.shape) if self.row.tuning.tune == "lora" else 0.0
        work = self.work
        self.sizes = Sizes(
            self.given, self.shape, adapter, work.passages, work.queries, work.evaluated, work.passage_bytes
        )

    def settings(self, prefix: str, settings: type) -> Any:
        """Settings of a step, as far as the pipeline has them."""
        names = {name: flat_name(prefix, name) for name in parameters(settings)}
        return build(settings, {name: self.given[key] for name, key in names.items() if key in self.given})

    def training(self, prefix: str, recipe: Any) -> Training:
        """Training of a stage; several nodes have GPUs of their own."""
        nodes = int(self.given.get(f"{prefix}_nodes", 1))
        gpus = nodes * int(self.given[f"{prefix}_node_gpus"]) if nodes > 1 else int(self.given[f"{prefix}_gpus"])
        deepspeed = self.given[f"{prefix}_deepspeed"]
        return Training(recipe.tune, recipe.lora, recipe.schedule, deepspeed, max(1, gpus), self.number)

    def cost(self, step: str, inputs: Sequence[str], outputs: Sequence[str], **others: Any) -> Cost:
        """Cost of a step that is handed some artifacts and makes others; what the launcher transfers is counted.

        Of the parts of one pod only what they do: the artifacts are the pod's.
        """
        if self.in_one_pod:
            inputs = outputs = ()
        read, written = [[self.sizes.of(name) for name in names] for names in (inputs, outputs)]
        flop = others.get("flop")
        stored = artifacts.total(read) + artifacts.total(written)
        return Cost(
            step,
            flop=flop,
            gpu_hours=flop / (self.gpu.rate * UTILISATION * 3600)
            if flop is not None and "gpu_bytes" in others
            else None,
            gpu_bytes=others.get("gpu_bytes"),
            disk_bytes=stored + others.get("beside", 0.0),
            s3_bytes=artifacts.total(written) + others.get("sent", 0.0),
            fetched_bytes=artifacts.total(read),
            sending=artifacts.uploads(written) + others.get("requests", 0),
            fetching=artifacts.downloads(read),
        )

    def trained(
        self, step: str, training: Training, inputs: Sequence[str], outputs: Sequence[str], flop: float, memory: float
    ) -> Cost:
        """Cost of a training step: two checkpoints lie on the disk at a time, and go to S3 where they are asked for there."""
        checkpoint = training.trained(self.shape) * CHECKPOINT[training.deepspeed]
        hours = flop / (self.gpu.rate * UTILISATION * 3600) / training.gpus
        mirrored = str(self.given["run_checkpoint_uri"]).startswith("s3://")
        count = int(hours * 60 / self.given["run_checkpoint_minutes"]) if mirrored else 0
        requests = count * (artifacts.uploads([(checkpoint,)], artifacts.STORE_PART) + CHECKPOINT_FILES)
        others = {"flop": flop, "gpu_bytes": memory, "beside": 2 * checkpoint}
        return self.cost(step, inputs, outputs, **others, sent=count * checkpoint, requests=requests)


def estimate(given: Mapping[str, Any], work: Workload, gpu: Gpu) -> list[Cost]:
    """Estimates every step of train_retriever, and of retrain where the source has changed.

    Args:
        given: All parameters of the pipeline.
        work: How much there is to do.
        gpu: What the model steps run on, at `UTILISATION` of its rate.

    Raises:
        InputError: The backbone's shape is not known.
    """
    run = _Run(given, work, gpu)
    makers = (_fetching, _adaptation, _tuning, _indexing, _evaluation, _promotion)
    return [*_shared(run), *(cost for make in makers for cost in make(run))]


def estimate_comparison(given: Mapping[str, Any], variants: Iterable[Variant], work: Workload, gpu: Gpu) -> list[Cost]:
    """Estimates every step of compare_methods, at most: a variant takes what another one has finished before.

    Args:
        given: All parameters of the pipeline.
        variants: What is compared.
        work: How much there is to do.
        gpu: What the model steps run on.
    """
    shared, compared = _Run(given, work, gpu), tuple(variants)
    costs, fetched = _shared(shared, "mine_for_variants", ["data"]), list[dict[str, Any]]()
    for number, variant in enumerate(compared):
        own = of_variant(compared, number)
        run = _Run({**given, **own, **_one_pod(given, own)}, work, gpu, in_one_pod=True)
        backbone = of_backbone(variant)
        if backbone not in fetched:
            fetched.append(backbone)
            costs += _named(_fetching(_Run({**given, **own}, work, gpu)), variant.name if backbone else "")
        costs.append(_of_a_pod(run, variant.name))
    return [*costs, shared.cost("compare", ["evaluation"] * len(compared), [])]


def _one_pod(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What the parts of a variant share: the GPUs of its pod, and that there are no further nodes."""
    gpus = {**given, **own}[f"{POD_OF_A_VARIANT}_gpus"]
    return {f"{stage}_{key}": value for stage in ("adapt", "tune") for key, value in (("nodes", 1), ("gpus", gpus))}


def _of_a_pod(run: _Run, variant: str) -> Cost:
    """All parts of a variant as one step; each finished part goes to S3 once more, where checkpoints go there."""
    parts = [cost for make in (_adaptation, _tuning, _indexing, _evaluation) for cost in make(run)]
    trains = run.given["adapt_method"] != "none"
    kept = [run.sizes.of(name) for name in (*(("adapted",) if trains else ()), "retriever", "index")]
    kept = kept if str(run.given["run_checkpoint_uri"]).startswith("s3://") else []
    return replace(run, in_one_pod=False).cost(
        f"run_variant: {variant}",
        ["backbone", "data"],
        ["evaluation", "retriever"],
        flop=sum(cost.flop or 0 for cost in parts),
        gpu_bytes=max(cost.gpu_bytes or 0 for cost in parts),
        beside=sum(cost.disk_bytes for cost in parts) + artifacts.total(run.sizes.of(n) for n in ("adapted", "index")),
        sent=sum(cost.s3_bytes for cost in parts) + artifacts.total(kept),
        requests=sum(cost.sending for cost in parts) + artifacts.uploads(kept, artifacts.STORE_PART) + len(kept),
    )


def _named(costs: list[Cost], variant: str) -> list[Cost]:
    return [replace(cost, step=f"{cost.step}: {variant}") if variant else cost for cost in costs]


def _shared(
    run: _Run, mining: str = "mine_negatives", outputs: Sequence[str] = ("training_set", "bm25_runs")
) -> list[Cost]:
    """Preparing and mining; the step that mines has another name, and other outputs, in a comparison."""
    mined = {}
    if run.given["mine_encoder"]:
        encoded = run.work.passages * run.work.passage(ENCODER_LENGTH)
        memory = encoding_memory(ENCODER, run.given["mine_encoder_batch_tokens"], run.number)
        mined = {"flop": encoded * forward(ENCODER, run.work.passage(ENCODER_LENGTH)), "gpu_bytes": memory}
    return [
        run.cost("prepare_corpus", [], ["collection"], beside=run.sizes.prepared),
        run.cost(mining, ["collection"], outputs, beside=sum(run.sizes.collection), **mined),
    ]


def _fetching(run: _Run) -> list[Cost]:
    scratch = str(run.given["backbone"]).startswith("scratch:")
    flop = None
    if scratch:
        flop = run.given["backbone_scratch_tokens"] * 3 * (forward(run.shape, SCRATCH_LENGTH) + head_flop(run.shape))
    return [run.cost("fetch_backbone", ["collection"], ["backbone"], flop=flop)]


def _adaptation(run: _Run) -> list[Cost]:
    """Two adaptations after each other are one step, whose artifacts count with the last."""
    inputs = ["backbone", "collection", "training_set"]
    names = [name for name in run.given["adapt_method"].split("+") if name in ADAPTATIONS]
    costs = [_adapted(run, name, *(([], []) if name != names[-1] else (inputs, ["adapted"]))) for name in names]
    return costs or [run.cost("adapt_backbone (none)", inputs, ["adapted"])]


def _adapted(run: _Run, name: str, inputs: list[str], outputs: list[str]) -> Cost:
    recipe = overridden(ADAPTATIONS[name][run.given["adapt_recipe"]], run.settings("adapt", AdaptationSettings))
    training, shape = run.training("adapt", recipe), run.shape
    length, labels, examples = recipe.rows(run.work)
    count = training.examples(examples)
    flop = count * (length * training_flop(shape, training, length) + labels * head_flop(shape, training))
    memory = training_memory(shape, training, training.micro_batch * length, training.micro_batch * labels)
    return run.trained(f"adapt_backbone ({name}, for {recipe.tuned_for})", training, inputs, outputs, flop, memory)


def _tuning(run: _Run) -> list[Cost]:
    row, training, work = run.row, run.training("tune", run.row.tuning), run.work
    query, passage = work.query(row.query_length), work.passage(row.passage_length)
    per_query = query + row.tuning.passages_per_query * passage
    flop = training.examples(work.queries) * (
        query * training_flop(run.shape, training, query, passes=bool(row.tuning.gradient_cache))
        + (per_query - query) * training_flop(run.shape, training, passage, passes=bool(row.tuning.gradient_cache))
    )
    held = row.tuning.gradient_cache * passage or training.micro_batch * per_query
    memory = training_memory(run.shape, training, held, 0)
    inputs = ["adapted", "collection", "training_set"]
    return [run.trained(f"tune_retriever ({row.name})", training, inputs, ["retriever"], flop, memory)]


def _indexing(run: _Run) -> list[Cost]:
    work, longest = run.work, run.given["index_passage_length"]
    length = work.passage(longest if longest > 0 else run.row.passage_length)
    apart = run.sizes.shards if run.given["index_shards_uri"] else ()
    sent = {"sent": sum(apart), "requests": artifacts.uploads([apart], artifacts.STORE_PART)} if apart else {}
    memory = encoding_memory(run.shape, run.given["index_batch_tokens"], run.number)
    flop = work.passages * length * forward(run.shape, length)
    inputs = ["retriever", "collection"]
    return [run.cost("build_index", inputs, ["index"], flop=flop, gpu_bytes=memory, beside=sum(apart), **sent)]


def _evaluation(run: _Run) -> list[Cost]:
    """Queries, the un-tuned backbone on as much of the corpus as it may encode, published encoders, re-ranking."""
    work, given, shape = run.work, run.given, run.shape
    query, passage = work.query(run.row.query_length), work.passage(run.row.passage_length)
    untuned = min(work.passages, given["eval_untuned_passages"])
    flop = (2 if untuned else 1) * work.evaluated * query * forward(shape, query)
    flop += untuned * passage * forward(shape, passage)
    if given["eval_encoders"] and work.passages <= given["eval_encoder_passages"]:
        encoders = len(given["eval_encoders"].split(","))
        length = work.passage(ENCODER_LENGTH)
        flop += encoders * work.passages * length * forward(ENCODER, length)
    pairs = work.evaluated * given["eval_rerank_depth"] * (2 if given["eval_rerank_attention_block"] == "both" else 1)
    flop += pairs * ((query + passage) * forward(shape, query + passage) + query * head_flop(shape))
    inputs = ["index", "retriever", "backbone", "adapted", "collection", "bm25_runs"]
    memory = encoding_memory(shape, given["index_batch_tokens"], run.number)
    beside = sum(run.sizes.shards) * untuned / work.passages
    return [run.cost("evaluate", inputs, ["evaluation"], flop=flop, gpu_bytes=memory, beside=beside)]


def _promotion(run: _Run) -> list[Cost]:
    """What is published is sent once more, by the project's own store."""
    published = [run.sizes.of(name) for name in ("retriever", "index", "evaluation")]
    uploads = artifacts.uploads(published, artifacts.STORE_PART) + REGISTRY
    return [
        run.cost(
            "promote",
            ["evaluation", "retriever", "index"],
            ["decision"],
            sent=artifacts.total(published),
            requests=uploads,
        )
    ]
