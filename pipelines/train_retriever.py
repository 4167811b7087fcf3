"""The pipeline that turns a corpus into an evaluated, published retriever.

Compile it with `make compile`, or with `kfp dsl compile --py pipelines/train_retriever.py --output train_retriever.yaml`.
"""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Markdown, Metrics, Model

from components.adapt_backbone import component as adaptation
from components.build_index import component as indexing
from components.definition import image, with_arguments
from components.evaluate import component as evaluation
from components.fetch_backbone import component as fetching
from components.fingerprint_sources import component as fingerprinting
from components.mine_negatives import component as mining
from components.prepare_corpus import component as preparation
from components.promote import component as promotion
from components.tune_retriever import component as tuning
from llm_retriever.settings import (
    AdaptationSettings,
    BackboneSettings,
    CorpusSettings,
    EvaluationSettings,
    IndexSettings,
    MiningSettings,
    PartSettings,
    PromotionSettings,
    TuningSettings,
)
from pipelines import encoding
from pipelines.stages import on_cpu, on_gpu, on_model_image, parameter_help, stage, with_store


class Trained(NamedTuple):
    """What a run leaves behind."""

    retriever: Model
    index: Artifact
    evaluation: Artifact
    report: HTML
    summary: Markdown
    metrics: Metrics
    decision: Markdown
    published_uri: str


@dsl.pipeline(name="train-retriever")
@with_arguments(parameter_help())
def train_retriever(
    # corpus
    corpus_uri: str = CorpusSettings.uri,
    corpus_format: str = CorpusSettings.format,
    corpus_heldout_queries: int = CorpusSettings.heldout_queries,
    corpus_deduplicate: bool = CorpusSettings.deduplicate,
    corpus_max_bad_lines: int = CorpusSettings.max_bad_lines,
    corpus_max_passages: int = CorpusSettings.max_passages,
    corpus_cpus: str = "2",
    corpus_memory: str = "8Gi",
    # backbone
    backbone: str = BackboneSettings.source,
    backbone_revision: str = BackboneSettings.revision,
    backbone_scratch_tokens: int = BackboneSettings.scratch_tokens,
    backbone_scratch_vocabulary: int = BackboneSettings.scratch_vocabulary,
    backbone_cpus: str = "4",
    backbone_memory: str = "16Gi",
    # mine
    mine_depth: int = MiningSettings.depth,
    mine_negatives: int = MiningSettings.negatives,
    mine_sources: str = MiningSettings.sources,
    mine_rank_floor: int = MiningSettings.rank_floor,
    mine_score_ceiling: float = MiningSettings.score_ceiling,
    mine_near_duplicate: float = MiningSettings.near_duplicate,
    mine_random_top_up: bool = MiningSettings.random_top_up,
    mine_bm25: str = MiningSettings.bm25,
    mine_bm25_k1: float = MiningSettings.bm25_k1,
    mine_bm25_b: float = MiningSettings.bm25_b,
    mine_bm25_tune_split: str = MiningSettings.bm25_tune_split,
    mine_bm25_tune_metric: str = MiningSettings.bm25_tune_metric,
    mine_bm25_tune_queries: int = MiningSettings.bm25_tune_queries,
    mine_baselines: str = MiningSettings.baselines,
    mine_evaluation_depth: int = MiningSettings.evaluation_depth,
    mine_encoder: str = MiningSettings.encoder,
    mine_encoder_dtype: str = MiningSettings.encoder_dtype,
    mine_encoder_batch_tokens: int = MiningSettings.encoder_batch_tokens,
    mine_encoder_shards_uri: str = MiningSettings.encoder_shards_uri,
    mine_gpus: int = MiningSettings.processes,
    mine_threads: int = MiningSettings.threads,
    mine_cpus: str = "4",
    mine_memory: str = "8Gi",
    # adapt
    adapt_method: str = AdaptationSettings.method,
    adapt_recipe: str = AdaptationSettings.recipe,
    adapt_weights: str = AdaptationSettings.tune,
    adapt_corruption_ratio: float = AdaptationSettings.corruption_ratio,
    adapt_corruption_unit: str = AdaptationSettings.corruption_unit,
    adapt_attention_block: str = AdaptationSettings.attention_block,
    adapt_loss_on: str = AdaptationSettings.loss_on,
    adapt_embedding: str = AdaptationSettings.embedding,
    adapt_ar_weight: float = AdaptationSettings.ar_weight,
    adapt_bag_weight: float = AdaptationSettings.bag_weight,
    adapt_lora_rank: int = AdaptationSettings.lora_rank,
    adapt_lora_alpha: int = AdaptationSettings.lora_alpha,
    adapt_lora_dropout: float = AdaptationSettings.lora_dropout,
    adapt_query_length: int = AdaptationSettings.query_length,
    adapt_passage_length: int = AdaptationSettings.passage_length,
    adapt_epochs: float = AdaptationSettings.epochs,
    adapt_max_steps: int = AdaptationSettings.max_steps,
    adapt_learning_rate: float = AdaptationSettings.learning_rate,
    adapt_batch_size: int = AdaptationSettings.batch_size,
    adapt_micro_batch_size: int = AdaptationSettings.micro_batch_size,
    adapt_gradient_checkpointing: str = AdaptationSettings.gradient_checkpointing,
    adapt_deepspeed: str = AdaptationSettings.deepspeed,
    adapt_gpus: int = 1,
    adapt_cpus: str = "8",
    adapt_memory: str = "64Gi",
    # tune
    tune_method: str = TuningSettings.method,
    tune_recipe: str = TuningSettings.recipe,
    tune_weights: str = TuningSettings.tune,
    tune_passages_per_query: int = TuningSettings.passages_per_query,
    tune_temperature: float = TuningSettings.temperature,
    tune_embedding: str = TuningSettings.embedding,
    tune_read_out: str = TuningSettings.read_out,
    tune_gradient_cache: int = TuningSettings.gradient_cache,
    tune_mask_positives: str = TuningSettings.mask_positives,
    tune_sources: str = TuningSettings.sources,
    tune_distillation_weight: float = TuningSettings.distillation_weight,
    tune_distillation_temperature: float = TuningSettings.distillation_temperature,
    tune_lora_rank: int = TuningSettings.lora_rank,
    tune_lora_alpha: int = TuningSettings.lora_alpha,
    tune_lora_dropout: float = TuningSettings.lora_dropout,
    tune_query_length: int = TuningSettings.query_length,
    tune_passage_length: int = TuningSettings.passage_length,
    tune_epochs: float = TuningSettings.epochs,
    tune_max_steps: int = TuningSettings.max_steps,
    tune_learning_rate: float = TuningSettings.learning_rate,
    tune_batch_size: int = TuningSettings.batch_size,
    tune_micro_batch_size: int = TuningSettings.micro_batch_size,
    tune_gradient_checkpointing: str = TuningSettings.gradient_checkpointing,
    tune_deepspeed: str = TuningSettings.deepspeed,
    tune_gpus: int = 1,
    tune_cpus: str = "8",
    tune_memory: str = "64Gi",
    # index
    index_passage_length: int = IndexSettings.passage_length,
    index_batch_tokens: int = IndexSettings.batch_tokens,
    index_shard_passages: int = IndexSettings.shard_passages,
    index_dtype: str = IndexSettings.dtype,
    index_shards_uri: str = IndexSettings.shards_uri,
    index_kind: str = IndexSettings.kind,
    index_hnsw_m: int = IndexSettings.hnsw_m,
    index_hnsw_ef_construction: int = IndexSettings.hnsw_ef_construction,
    index_hnsw_ef_search: int = IndexSettings.hnsw_ef_search,
    index_hnsw_threads: int = IndexSettings.hnsw_threads,
    index_ivf_lists: int = IndexSettings.ivf_lists,
    index_ivf_probes: int = IndexSettings.ivf_probes,
    index_pq_bytes: int = IndexSettings.pq_bytes,
    index_train_sample: int = IndexSettings.train_sample,
    index_refine: int = IndexSettings.refine,
    index_memory_gib: float = IndexSettings.memory_gib,
    index_parts: int = PartSettings.parts,
    index_gpus: int = 1,
    index_cpus: str = "8",
    index_memory: str = "32Gi",
    # eval
    eval_splits: str = EvaluationSettings.splits,
    eval_depth: int = EvaluationSettings.depth,
    eval_measures: str = EvaluationSettings.measures,
    eval_primary_metric: str = EvaluationSettings.primary_metric,
    eval_relevance_level: int = EvaluationSettings.relevance_level,
    eval_query_length: int = EvaluationSettings.query_length,
    eval_untuned_passages: int = EvaluationSettings.untuned_passages,
    eval_encoders: str = EvaluationSettings.encoders,
    eval_encoder_passages: int = EvaluationSettings.encoder_passages,
    eval_runs: str = EvaluationSettings.runs,
    eval_zero_shot: str = EvaluationSettings.zero_shot,
    eval_zero_shot_query_length: int = EvaluationSettings.zero_shot_query_length,
    eval_zero_shot_passage_length: int = EvaluationSettings.zero_shot_passage_length,
    eval_zero_shot_max_bad_lines: int = EvaluationSettings.zero_shot_max_bad_lines,
    eval_rerank_depth: int = EvaluationSettings.rerank_depth,
    eval_rerank_from: str = EvaluationSettings.rerank_from,
    eval_rerank_model: str = EvaluationSettings.rerank_model,
    eval_rerank_attention_block: str = EvaluationSettings.rerank_attention_block,
    eval_rerank_interpolation: float = EvaluationSettings.rerank_interpolation,
    eval_rerank_end_of_sequence: bool = EvaluationSettings.rerank_end_of_sequence,
    eval_attention_queries: int = EvaluationSettings.attention_queries,
    eval_gpus: int = 1,
    eval_cpus: str = "8",
    eval_memory: str = "32Gi",
    # promote
    promote_uri: str = PromotionSettings.uri,
    promote_split: str = PromotionSettings.split,
    promote_metric: str = PromotionSettings.metric,
    promote_minimum_gain: float = PromotionSettings.minimum_gain,
    promote_minimum_value: float = PromotionSettings.minimum_value,
    promote_cpus: str = "1",
    promote_memory: str = "4Gi",
    # run
    run_seed: int = CorpusSettings.seed,
    run_precision: str = TuningSettings.precision,
    run_checkpoint_uri: str = TuningSettings.checkpoint_uri,
    run_checkpoint_minutes: float = TuningSettings.checkpoint_minutes,
    run_gpu_type: str = "nvidia.com/gpu",
    run_cpu_image: str = image("cpu"),
    run_gpu_image: str = image("gpu"),
) -> Trained:
    """Turns a corpus with queries into an evaluated LLM dense retriever, and publishes it when it is better."""
    given = dict(locals())

    sources = fingerprinting.fingerprint_sources(corpus_uri=corpus_uri, backbone=backbone, parts=index_parts)
    sources.set_caching_options(False)
    with_store(on_cpu(sources, given, "promote"))

    corpus = preparation.prepare_corpus(
        **stage(given, "corpus", CorpusSettings, source_fingerprint=sources.outputs["corpus_fingerprint"])
    )
    with_store(on_cpu(corpus, given, "corpus"))
    collection = corpus.outputs["collection"]

    fetched = fetching.fetch_backbone(
        collection=collection,
        **stage(given, "backbone", BackboneSettings, source_fingerprint=sources.outputs["backbone_fingerprint"]),
    )
    with_store(on_model_image(fetched, given, "backbone"))
    original = fetched.outputs["backbone"]

    mined = mining.mine_negatives(collection=collection, **stage(given, "mine", MiningSettings))
    with_store(on_gpu(mined, given, "mine"))
    pairs = mined.outputs["training_set"]

    adapted = adaptation.adapt_backbone(
        backbone=original, collection=collection, training_set=pairs, **stage(given, "adapt", AdaptationSettings)
    )
    with_store(on_gpu(adapted, given, "adapt"))

    tuned = tuning.tune_retriever(
        adapted=adapted.outputs["adapted"],
        collection=collection,
        training_set=pairs,
        **stage(given, "tune", TuningSettings),
    )
    with_store(on_gpu(tuned, given, "tune"))
    retriever = tuned.outputs["retriever"]

    encoded = encoding.encoded_in_parts(given, sources.outputs["part_numbers"], retriever, collection)
    built = indexing.build_index(retriever=retriever, collection=collection, **stage(given, "index", IndexSettings))
    with_store(on_gpu(built, given, "index")).after(encoded)
    index = built.outputs["index"]

    judged = evaluation.evaluate(
        index=index,
        retriever=retriever,
        backbone=original,
        adapted=adapted.outputs["adapted"],
        collection=collection,
        bm25_runs=mined.outputs["bm25_runs"],
        **stage(given, "eval", EvaluationSettings),
    )
    with_store(on_gpu(judged, given, "eval"))

    decided = promotion.promote(
        evaluation=judged.outputs["evaluation"],
        retriever=retriever,
        index=index,
        **stage(given, "promote", PromotionSettings),
    )
    decided.set_caching_options(False)
    with_store(on_cpu(decided, given, "promote"))

    return Trained(
        retriever=retriever,
        index=index,
        evaluation=judged.outputs["evaluation"],
        report=judged.outputs["report"],
        summary=judged.outputs["summary"],
        metrics=judged.outputs["metrics"],
        decision=decided.outputs["decision"],
        published_uri=decided.outputs["published_uri"],
    )
