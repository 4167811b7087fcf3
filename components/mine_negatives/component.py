"""What Kubeflow sees of the step `mine_negatives`."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Markdown, Output

from components.definition import container, documented
from components.mine_negatives.__main__ import STEP


@dsl.container_component
@documented(STEP)
def mine_negatives(
    collection: Input[Dataset],
    training_set: Output[Dataset],
    bm25_runs: Output[Artifact],
    statistics: Output[Markdown],
    depth: int,
    negatives: int,
    rank_floor: int,
    score_ceiling: float,
    bm25_k1: float,
    bm25_b: float,
    evaluation_depth: int,
    threads: int,
    seed: int,
) -> dsl.ContainerSpec:
    """Finds hard negatives for every training query with BM25, and makes the BM25 baseline runs."""
    return container(STEP, "cpu")
