"""The pipeline that trains and evaluates several variants on the same corpus, and compares them.

`kfp dsl compile --py pipelines/compare_methods.py --output compare_methods.yaml` compiles it for the variants in
`variants/methods.toml`; `llm-retriever compile compare_methods --variants NAME` for others.
"""

from pipelines import variants
from pipelines.comparison import comparison_of

compare_methods = comparison_of(variants.load(variants.DEFAULT).variants)
