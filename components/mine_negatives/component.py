"""What Kubeflow sees of the step `mine_negatives`."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Output

from components.definition import container, documented
from components.mine_negatives.__main__ import STEP


@dsl.container_component
@documented(STEP)
def mine_negatives(
    collection: Input[Dataset],
    training_set: Output[Dataset],
    bm25_runs: Output[Artifact],
    statistics: Output[Markdown],
    picture: Output[HTML],
    depth: int,
    negatives: int,
    sources: str,
    rank_floor: int,
    score_ceiling: float,
    near_duplicate: float,
    random_top_up: bool,
    bm25: str,
    bm25_k1: float,
    bm25_b: float,
    bm25_tune_split: str,
    bm25_tune_metric: str,
    bm25_tune_queries: int,
    baselines: str,
    evaluation_depth: int,
    encoder: str,
    encoder_dtype: str,
    encoder_batch_tokens: int,
    encoder_shards_uri: str,
    processes: int,
    precision: str,
    threads: int,
    seed: int,
) -> dsl.ContainerSpec:
    """Finds hard negatives for every training query with BM25 and a dense encoder, and makes the sparse baseline runs."""
    return container(STEP, "gpu")
