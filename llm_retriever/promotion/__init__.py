"""Promotion: decides whether a new retriever replaces the one in production, and publishes it.

Where the evaluation also measured the version that is in production, on the same queries of the same collection, and
that version is in production still, the two are compared directly. The new one replaces it if

1. its value on the target split reaches `minimum_value`,
2. it is higher than production's there, and by at least `minimum_gain`, and
3. on no guard split is it significantly worse: lower, with p of the paired t-test below `significance`.

Otherwise the old one stays; if its index was brought to the new collection on the way, and this is a retraining (which
passes `source_fingerprint`), its retriever is published with that index as a version of its own.

Where the evaluation did not measure what is in production (nothing is, another run promoted meanwhile, or no comparison
was asked for), the rule looks at numbers of different evaluations, on the target split alone:

1. The retriever that is in production already, with the same index, is kept: there is nothing to do.
2. The value must reach `minimum_value`.
3. Where nothing is in production, that is all.
4. Where the version in production was measured on the same queries (same collection, split and metric), the difference
   to it must reach `minimum_gain`.
5. Where it was measured on others, the two numbers say nothing about each other. The new one then replaces the old one
   only if `minimum_value` is set: somebody has said which value is good enough. Without it the old one stays, because
   a worse model must never replace a better one.

Keeping the old version is a result, not a failure.
"""

from llm_retriever.promotion.evidence import measured
from llm_retriever.promotion.promote import promote

__all__ = ["measured", "promote"]
