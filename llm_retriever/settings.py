"""What each step can be told: one frozen dataclass a step, the only source of names, types, defaults, limits and help.

The same class feeds the Kubeflow signature, the command line, the validation at the door and the manifest of what was
made. Where a method's published recipe has an opinion (`llm_retriever.methods`), the default here is "unset": -1 for
numbers, "" for texts, and the recipe decides.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from llm_retriever.errors import InputError

UNSET_NUMBER = -1
UNSET_TEXT = ""

Recipe = Annotated[
    Literal["default", "paper", "released"],
    Field(
        description="Which hyper-parameters and wordings: as printed in the paper, as run by the authors' released code, "
        "or this project's default where the two disagree."
    ),
]
Switch = Literal["", "on", "off"]
DeepSpeedStage = Annotated[
    Literal["off", "zero1", "zero2", "zero3"],
    Field(description="DeepSpeed: off, or the ZeRO stage that shards optimizer (1), gradients (2), weights (3)."),
]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"],
    Field(description="Arithmetic; auto = bf16 where the processor or GPU computes it natively, else fp32."),
]
Processes = Annotated[
    int, Field(ge=0, le=64, description="Training processes in this pod; 0 = one per visible GPU, at least one.")
]
Epochs = Annotated[float, Field(ge=-1, description="Passes over the training pairs; -1 = the recipe's.")]
MaxSteps = Annotated[
    int,
    Field(
        ge=-1,
        description="Stop after this many updates; -1 = the recipe's, or as many as the epochs need that are given.",
    ),
]
LearningRate = Annotated[float, Field(ge=-1, description="Peak learning rate; -1 = the recipe's.")]
BatchSize = Annotated[
    int, Field(ge=-1, description="Queries per update, over all processes and accumulation; -1 = the recipe's.")
]
MicroBatchSize = Annotated[int, Field(ge=-1, description="Queries that one process holds at once; -1 = the recipe's.")]
QueryLength = Annotated[int, Field(ge=-1, description="Tokens of a query, prompt included; -1 = the recipe's.")]
PassageLength = Annotated[int, Field(ge=-1, description="Tokens of a passage, prompt included; -1 = the recipe's.")]
Embedding = Annotated[
    Literal["", "eos", "eos4", "new4"],
    Field(
        description="Embedding tokens instead of the method's: one end-of-sequence token, four of them, or four new tokens "
        "that stage one adds; both stages must agree. Empty = the method's."
    ),
]
LoraRank = Annotated[int, Field(ge=-1, description="Rank of the LoRA adapter; -1 = the recipe's.")]
LoraAlpha = Annotated[int, Field(ge=-1, description="Scale of the LoRA adapter; -1 = the recipe's.")]
LoraDropout = Annotated[
    float, Field(ge=-1, lt=1, description="Dropout before the LoRA adapter; slow on a CPU; -1 = the recipe's.")
]
GradientCheckpointing = Annotated[
    Switch, Field(description="Recompute activations to save memory: on, off, empty = the recipe's.")
]
Seed = Annotated[int, Field(ge=0, description="Seed of every random draw of this step.")]
CheckpointUri = Annotated[
    str,
    Field(
        description="Directory or s3:// prefix for checkpoints; a step that was killed resumes from there. "
        "Empty = beside the output, which does not outlive a pod."
    ),
]
CheckpointMinutes = Annotated[float, Field(gt=0, description="Minutes between checkpoints.")]


SourceFingerprint = Annotated[
    str,
    Field(
        description="What fingerprint_sources saw at the source; it has no effect but that a changed source is not taken "
        "from Kubeflow's cache."
    ),
]


@dataclasses.dataclass(frozen=True)
class FingerprintSettings:
    """`fingerprint_sources`: what the corpus and the backbone consist of right now, so that changes are noticed."""

    corpus_uri: Annotated[str, Field(min_length=1, description="Source of the collection, as for prepare_corpus.")] = (
        "demo:python-docs"
    )
    backbone: Annotated[str, Field(min_length=1, description="The backbone, as for fetch_backbone.")] = "scratch:small"


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """`prepare_corpus`: where the collection comes from and how it is cleaned."""

    uri: Annotated[
        str,
        Field(
            min_length=1,
            description="Source: a directory, s3://bucket/prefix, hf://datasets/OWNER/NAME[@REVISION], or demo:python-docs.",
        ),
    ] = "demo:python-docs"
    format: Annotated[
        Literal["auto", "beir", "msmarco", "tevatron", "flagembedding"],
        Field(description="Layout of the source; auto = recognised from its file names."),
    ] = "auto"
    heldout_queries: Annotated[
        int,
        Field(
            ge=0, description="Where the source has no evaluation split: so many training queries become split 'dev'."
        ),
    ] = 500
    deduplicate: Annotated[
        bool, Field(description="Merge passages whose normalised title and text are the same; their qrels move along.")
    ] = True
    max_bad_lines: Annotated[
        int,
        Field(ge=0, description="So many unusable lines are set aside in bad_lines.jsonl instead of ending the step."),
    ] = 0
    max_passages: Annotated[
        int, Field(ge=0, description="Keep the judged passages and fill up with others to this many; 0 = keep all.")
    ] = 0
    seed: Seed = 17
    source_fingerprint: SourceFingerprint = ""


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """`fetch_backbone`: which causal LM everything starts from."""

    source: Annotated[
        str,
        Field(
            min_length=1,
            description="A directory, s3://bucket/prefix, a Hugging Face model id, or scratch:tiny|small|medium = a tokenizer "
            "and Llama made and pre-trained on the collection itself.",
        ),
    ] = "scratch:small"
    revision: Annotated[
        str,
        Field(description="Commit of the Hugging Face model; required for a model id, so that a run can be repeated."),
    ] = ""
    scratch_tokens: Annotated[
        int, Field(ge=0, description="scratch only: tokens to pre-train on (the collection is repeated as needed).")
    ] = 6_000_000
    scratch_vocabulary: Annotated[
        int, Field(ge=300, le=65_536, description="scratch only: size of the vocabulary.")
    ] = 8192
    precision: Precision = "auto"
    seed: Seed = 17
    source_fingerprint: SourceFingerprint = ""


@dataclasses.dataclass(frozen=True)
class MiningSettings:
    """`mine_negatives`: hard negatives for the training queries, and BM25 runs for the evaluation splits."""

    depth: Annotated[int, Field(ge=1, le=10_000, description="Candidates taken per training query.")] = 200
    negatives: Annotated[
        int, Field(ge=1, le=10_000, description="Hard negatives kept per query, drawn from the candidates by the seed.")
    ] = 30
    rank_floor: Annotated[
        int, Field(ge=0, description="Leave out the first so many candidates: the top ranks hold unlabelled positives.")
    ] = 0
    score_ceiling: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Leave out candidates that score above this share of the best positive's score; 0 = off.",
        ),
    ] = 0.0
    bm25_k1: Annotated[float, Field(ge=0, description="BM25 term saturation.")] = 0.9
    bm25_b: Annotated[float, Field(ge=0, le=1, description="BM25 length normalisation.")] = 0.4
    evaluation_depth: Annotated[
        int, Field(ge=1, le=10_000, description="Passages per evaluation query in the BM25 run.")
    ] = 1000
    threads: Annotated[int, Field(ge=0, description="Search threads; 0 = one per processor.")] = 0
    seed: Seed = 17


@dataclasses.dataclass(frozen=True)
class AdaptationSettings:
    """`adapt_backbone`: stage one, before any contrastive tuning."""

    method: Annotated[
        Literal["none", "ql", "ebae_ebar", "mntp", "simcse", "mntp+simcse"],
        Field(
            description="none = leave the backbone as it is; ql = LLM-QL query-likelihood modelling; ebae_ebar = Llama2Vec; "
            "mntp and simcse = LLM2Vec's masked next-token prediction and unsupervised contrast."
        ),
    ] = "ql"
    recipe: Recipe = "default"
    tune: Annotated[
        Literal["", "full", "lora"], Field(description="Train all weights or a LoRA adapter; empty = the recipe's.")
    ] = ""
    corruption_ratio: Annotated[
        float,
        Field(ge=-1, le=1, description="ql, mntp: probability that a word or token is hidden; -1 = the recipe's."),
    ] = -1.0
    corruption_unit: Annotated[
        Literal["", "word", "token"], Field(description="ql: hide whole words or single tokens; empty = the recipe's.")
    ] = ""
    attention_block: Annotated[
        Switch, Field(description="ql: query tokens see the passage only through [E]: on, off, empty = the recipe's.")
    ] = ""
    loss_on: Annotated[
        Literal["", "query", "all"],
        Field(description="ql: loss on the query's tokens or on all tokens; empty = the recipe's."),
    ] = ""
    embedding: Embedding = ""
    ar_weight: Annotated[
        float, Field(ge=-1, description="ebae_ebar: weight of the next-token loss on the text; -1 = the recipe's.")
    ] = -1.0
    bag_weight: Annotated[
        float, Field(ge=-1, description="ebae_ebar: weight of the bag-of-words losses; -1 = the recipe's.")
    ] = -1.0
    lora_rank: LoraRank = UNSET_NUMBER
    lora_alpha: LoraAlpha = UNSET_NUMBER
    lora_dropout: LoraDropout = -1.0
    query_length: QueryLength = UNSET_NUMBER
    passage_length: PassageLength = UNSET_NUMBER
    epochs: Epochs = -1.0
    max_steps: MaxSteps = UNSET_NUMBER
    learning_rate: LearningRate = -1.0
    batch_size: BatchSize = UNSET_NUMBER
    micro_batch_size: MicroBatchSize = UNSET_NUMBER
    gradient_checkpointing: GradientCheckpointing = ""
    precision: Precision = "auto"
    deepspeed: DeepSpeedStage = "off"
    processes: Processes = 0
    checkpoint_uri: CheckpointUri = ""
    checkpoint_minutes: CheckpointMinutes = 10.0
    seed: Seed = 17


@dataclasses.dataclass(frozen=True)
class TuningSettings:
    """`tune_retriever`: stage two, contrastive tuning with hard and in-batch negatives."""

    method: Annotated[
        Literal["llm-ql", "llama2vec", "llm2vec", "repllama", "echo", "summarize"],
        Field(description="Row of the methods table: prompts, embedding tokens, pooling, attention, recipe."),
    ] = "llm-ql"
    recipe: Recipe = "default"
    tune: Annotated[
        Literal["", "full", "lora"], Field(description="Train all weights or a LoRA adapter; empty = the recipe's.")
    ] = ""
    passages_per_query: Annotated[
        int,
        Field(
            ge=-1, description="Passages per query, the positive first, the others hard negatives; -1 = the recipe's."
        ),
    ] = UNSET_NUMBER
    temperature: Annotated[
        float, Field(ge=-1, description="Temperature of the contrastive loss; -1 = the recipe's.")
    ] = -1.0
    embedding: Embedding = ""
    read_out: Annotated[
        Literal["", "n2s", "s2s", "n2n"],
        Field(
            description="llama2vec: whether queries and passages ask for the next text (n) or for themselves (s): query "
            "first; empty = the method's."
        ),
    ] = ""
    gradient_cache: Annotated[
        int,
        Field(
            ge=-1,
            description="Texts encoded at once with gradients, so that large batches fit; 0 = off, -1 = the recipe's.",
        ),
    ] = UNSET_NUMBER
    lora_rank: LoraRank = UNSET_NUMBER
    lora_alpha: LoraAlpha = UNSET_NUMBER
    lora_dropout: LoraDropout = -1.0
    query_length: QueryLength = UNSET_NUMBER
    passage_length: PassageLength = UNSET_NUMBER
    epochs: Epochs = -1.0
    max_steps: MaxSteps = UNSET_NUMBER
    learning_rate: LearningRate = -1.0
    batch_size: BatchSize = UNSET_NUMBER
    micro_batch_size: MicroBatchSize = UNSET_NUMBER
    gradient_checkpointing: GradientCheckpointing = ""
    precision: Precision = "auto"
    deepspeed: DeepSpeedStage = "off"
    processes: Processes = 0
    checkpoint_uri: CheckpointUri = ""
    checkpoint_minutes: CheckpointMinutes = 10.0
    seed: Seed = 17


@dataclasses.dataclass(frozen=True)
class IndexSettings:
    """`build_index`: how the corpus becomes vectors."""

    passage_length: Annotated[
        int, Field(ge=-1, description="Tokens of a passage, prompt included; -1 = as in training.")
    ] = UNSET_NUMBER
    batch_tokens: Annotated[
        int, Field(ge=1, description="Tokens (padding included) that go through the model at once.")
    ] = 16_384
    shard_passages: Annotated[int, Field(ge=1, description="Passages per shard; a killed run resumes at a shard.")] = (
        500_000
    )
    dtype: Annotated[Literal["fp32", "fp16"], Field(description="Stored precision of the vectors.")] = "fp32"
    precision: Precision = "auto"


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """`evaluate`: search, metrics, baselines, report."""

    splits: Annotated[
        str, Field(description="Query splits to evaluate, separated by commas; empty = all but train.")
    ] = ""
    depth: Annotated[int, Field(ge=1, le=10_000, description="Passages searched per query.")] = 1000
    measures: Annotated[
        str, Field(min_length=1, description="Metrics, separated by commas: mrr@K, ndcg@K, recall@K, map.")
    ] = "mrr@10,ndcg@10,recall@100,recall@1000"
    primary_metric: Annotated[
        str, Field(min_length=1, description="The metric that significance tests and promotion look at.")
    ] = "ndcg@10"
    relevance_level: Annotated[
        int, Field(ge=1, description="Grade from which a judgment counts as relevant in metrics that are not graded.")
    ] = 1
    query_length: Annotated[
        int, Field(ge=-1, description="Tokens of a query, prompt included; -1 = as in training.")
    ] = UNSET_NUMBER
    untuned_passages: Annotated[
        int,
        Field(
            ge=0,
            description="Corpora up to this size are also encoded by the un-tuned backbone, as a baseline; 0 = never.",
        ),
    ] = 100_000
    precision: Precision = "auto"


@dataclasses.dataclass(frozen=True)
class PromotionSettings:
    """`promote`: when a new retriever replaces the one in production, and where it is published."""

    uri: Annotated[
        str, Field(description="Directory or s3:// prefix of published versions; empty = decide, publish nothing.")
    ] = ""
    split: Annotated[str, Field(description="Split that decides; empty = the first one evaluated.")] = ""
    metric: Annotated[str, Field(min_length=1, description="Metric that decides.")] = "ndcg@10"
    minimum_gain: Annotated[
        float, Field(ge=-1, le=1, description="Required difference to the version in production.")
    ] = 0.0
    minimum_value: Annotated[
        float, Field(ge=0, le=1, description="Required value, also for the very first version.")
    ] = 0.0


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """`compare`: several evaluations side by side, tested against one of them and against each other."""

    reference: Annotated[
        str,
        Field(
            description="Name of the variant that BM25, the un-tuned backbone and all other variants are tested against; "
            "empty = the first one."
        ),
    ] = ""
    variants: Annotated[
        str,
        Field(
            description="JSON object with the description of each variant by its name, in the order of the tables; empty = "
            "the names and the order of the evaluations, without descriptions."
        ),
    ] = ""


SettingsClass = TypeVar("SettingsClass")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One setting, as the form, the command line and the READMEs show it."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()


def parameters(settings: type) -> dict[str, Parameter]:
    """The settings of a class, in the order of its fields."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return {f.name: _parameter(f.name, hints[f.name], f.default) for f in dataclasses.fields(settings)}


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    help_text, choices = "", ()
    while typing.get_origin(hint) is Annotated:
        hint, *notes = typing.get_args(hint)
        help_text = next((note.description for note in notes if getattr(note, "description", None)), help_text)
    if typing.get_origin(hint) is Literal:
        choices, hint = typing.get_args(hint), str
    return Parameter(name, hint, default, help_text, choices)


def build(settings: type[SettingsClass], values: dict[str, Any]) -> SettingsClass:
    """Validates `values` (numbers and booleans may be given as text) and returns the settings.

    Raises:
        InputError: A name is unknown, or a value has the wrong type or lies outside its limits.
    """
    unknown = sorted(set(values) - set(parameters(settings)))
    if unknown:
        raise InputError(
            "is not a setting of this step", field=unknown[0], mend=f"use one of {', '.join(parameters(settings))}"
        )
    try:
        return TypeAdapter(settings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else None
        raise InputError(
            f"{first['input']!r} is refused", field=field, mend=first["msg"][0].lower() + first["msg"][1:]
        ) from None


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain JSON values, for manifests."""
    return dataclasses.asdict(settings)


def is_unset(value: Any) -> bool:
    """Whether a setting leaves the decision to the recipe."""
    return value == UNSET_TEXT if isinstance(value, str) else value == UNSET_NUMBER
