"""The likelihood of a query given a passage, in the prompt of LLM-QL's stage one: the score of re-ranking.

    score(q, d) = Σ_i log P(q_i | prompt, d, [E], q_<i)

The passage is not corrupted, and the first token of the query is read at the last [E]. Rows and masks are those that stage
one trains with.

Source: Zhang et al. (LLM-QL), Eq. 8 and Table 8.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_retriever import methods
from llm_retriever.adaptation.query_likelihood import PairCollator
from llm_retriever.data.collection import PassageLookup
from llm_retriever.encoders.retriever import BATCH_TOKENS, PROCESSOR_BATCH_TOKENS
from llm_retriever.errors import InputError
from llm_retriever.methods import PromptTemplate, QueryLikelihoodRecipe
from llm_retriever.models import masks
from llm_retriever.models.attention import check_attention_mask, set_attention
from llm_retriever.models.batches import token_batches
from llm_retriever.models.card import EMBEDDING_TOKENS, Lineage, RetrieverCard, load_lineage
from llm_retriever.models.last_layer import LastLayer
from llm_retriever.models.loading import chosen_device, load_model, load_tokenizer
from llm_retriever.models.prompts import passage_text
from llm_retriever.reranking.query_packing import Pack, batch_of, mask_of, packs

METHOD = "llm-ql"


@dataclasses.dataclass(frozen=True)
class QueryPrompt:
    """The prompt that joins a passage and a query into one row.

    Attributes:
        recipe: Document prompt and lengths; without corruption, and with the query alone as target.
        embedding_tokens: [E], between passage and query.
        is_trained: Whether the model was trained to generate queries in this prompt.
    """

    recipe: QueryLikelihoodRecipe
    embedding_tokens: tuple[str, ...]
    is_trained: bool

    @classmethod
    def of(cls, lineage: Lineage) -> QueryPrompt:
        """Returns the prompt of a model's last query-likelihood stage; LLM-QL's default where there was none."""
        recipe = methods.ADAPTATIONS["ql"]["default"]
        assert isinstance(recipe, QueryLikelihoodRecipe)  # noqa: S101
        tokens: Sequence[str] = methods.method(METHOD).passage.embedding_tokens
        trained = [
            stage.settings for stage in lineage.stages if {"document", "corruption_ratio"} <= set(stage.settings)
        ]
        if trained:
            last = trained[-1]
            recipe = dataclasses.replace(
                recipe,
                document=_template(last["document"]),
                query_length=int(last["query_length"]),
                passage_length=int(last["passage_length"]),
            )
            tokens = last.get(EMBEDDING_TOKENS, [tokens])[0]
        return cls(dataclasses.replace(recipe, corruption_ratio=0.0, loss_on="query"), tuple(tokens), bool(trained))


def _template(fields: dict[str, Any]) -> PromptTemplate:
    return PromptTemplate(**{**fields, "embedding_tokens": tuple(fields["embedding_tokens"])})


def lineage_within(adapted: Path, card: RetrieverCard) -> Lineage:
    """Loads the lineage of an adapted backbone, which must be the one that a retriever was tuned from.

    Raises:
        InputError: It is another one.
    """
    lineage = load_lineage(adapted)
    if lineage.digest != card.lineage.digest or lineage.stages != card.lineage.stages[: len(lineage.stages)]:
        raise InputError(
            f"not the adapted backbone that the retriever was tuned from ({card.lineage.source})",
            file=adapted,
            field="adapted",
            hint="give the output of adapt_backbone of the same run",
        )
    return lineage


def lacking(template: QueryPrompt, directory: Path) -> str:
    """First embedding token of a prompt that a model's tokenizer does not have; "" where it has all."""
    known = load_tokenizer(directory).get_vocab()
    return next((symbol for symbol in template.embedding_tokens if symbol not in {"eos", *known}), "")


def load_language_model(
    directory: Path, *, precision: str, device: str | None = None, attention: str | None = None
) -> tuple[Any, Any]:
    """Loads a causal LM with its head, causal whatever it was adapted to, and its tokenizer.

    Args:
        directory: A backbone directory, or the `model` of a retriever.
        precision: `bf16`, `fp32` or `auto`.
        device: As torch names it; None = the first GPU, or the processor.
        attention: Implementation, as transformers names it; None = the fastest one.

    Raises:
        InputError: There is no such model, its head is missing, or it takes no mask.
    """
    tokenizer = load_tokenizer(directory)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    model, _ = load_model(directory, precision, "AutoModelForCausalLM", **options)
    set_attention(model, "causal")
    check_attention_mask(model.to(chosen_device(device)))
    return model, tokenizer


@dataclasses.dataclass
class QueryLikelihood:
    """Scores pairs of query and passage with a causal LM.

    Args:
        model: Model with its head.
        tokenizer: Its fast tokenizer, which has the embedding tokens.
        template: Prompt of the rows.
        lookup: The collection's passages.
        end_of_sequence: Whether the token that closes the query counts too, as it does in training.
        batch_tokens: Tokens, padding included, that go through the model at once; fewer on a processor.

    Attributes:
        tokens: Tokens, padding included, that have gone through the model.

    Raises:
        InputError: The tokenizer lacks an embedding token.
    """

    model: Any
    tokenizer: Any
    template: QueryPrompt
    lookup: PassageLookup
    end_of_sequence: bool = True
    batch_tokens: int = BATCH_TOKENS
    tokens: int = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        self.rows = PairCollator(self.template.recipe, self.template.embedding_tokens, self.tokenizer, self.lookup)
        self._last_layer = LastLayer()

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        attention_block: bool,
        report: Callable[[int], None] = lambda pairs: None,
    ) -> list[float]:
        """Natural logarithm of P(query | passage) of every pair, a sum over the tokens of the query.

        A query or passage that stands in several pairs is tokenised once, and a passage that stands in several goes through
        the model once for several queries.

        Args:
            pairs: Text of the query and id of the passage.
            attention_block: Whether the query sees the passage through [E] alone (Eq. 6).
            report: Called after each batch with its number of pairs.

        Raises:
            InputError: A score is not finite, or a batch does not fit into the GPU's memory.
        """
        rows = packs(pairs, *self.tokenised(pairs), self.rows.embedding)
        scores = [0.0] * len(pairs)
        for chosen in token_batches([len(row) for row in rows], self._budget()):
            batch = [rows[i] for i in chosen]
            for pair, value in self._logarithms(batch, attention_block):
                scores[pair] += value
            report(sum(len(row.pairs) for row in batch))
        self._check(scores, pairs)
        return scores

    def _budget(self) -> int:
        return min(self.batch_tokens, PROCESSOR_BATCH_TOKENS) if self.model.device.type == "cpu" else self.batch_tokens

    def tokenised(self, pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Tokenises the query parts, by query, and the document parts, by passage id."""
        texts, ids = list(dict.fromkeys(q for q, _ in pairs)), list(dict.fromkeys(p for _, p in pairs))
        bodies = [passage_text(passage.title, passage.text) for passage in map(self.lookup.__getitem__, ids)]
        queries = dict(zip(texts, self.rows.query_ids(texts), strict=True))
        return queries, dict(zip(ids, self.rows.documents.batch(bodies), strict=True))

    @torch.inference_mode()
    def _logarithms(self, rows: Sequence[Pack], attention_block: bool) -> Iterable[tuple[int, float]]:
        """Pair and log P of every token of a batch's queries."""
        batch = {name: values.to(self.model.device) for name, values in batch_of(rows, self.rows.end).items()}
        self.tokens += batch["input_ids"].numel()
        read = [(i, *reading) for i, row in enumerate(rows) for reading in row.readings(self.end_of_sequence)]
        if not read:
            return ()
        row, place, token, pair = torch.tensor(read).unbind(dim=1)
        kept = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        kept[row, place] = True
        logits = self._logits(batch, kept, mask_of(batch, attention_block, self.model.dtype))
        # The kept positions come flattened, row after row; two queries of a row are both read at its [E].
        found = (kept.flatten().cumsum(dim=0) - 1).view_as(kept)[row, place]
        values = logits.float().log_softmax(dim=-1)[found, token.to(found.device)]
        return zip(pair.tolist(), values.tolist(), strict=True)

    def _logits(self, batch: dict[str, Tensor], kept: Tensor, mask: Tensor | None) -> Tensor:
        try:
            return self._last_layer.logits(
                self.model,
                kept,
                input_ids=batch["input_ids"],
                attention_mask=None if mask is None else masks.check(mask),
                position_ids=batch["position_ids"],
                use_cache=False,
            )
        except torch.OutOfMemoryError:
            raise InputError(
                f"{batch['input_ids'].numel()} tokens at once do not fit into the GPU's memory",
                hint="use a larger GPU, or rerank_depth 0",
            ) from None

    def _check(self, scores: Sequence[float], pairs: Sequence[tuple[str, str]]) -> None:
        wrong = next((pair for pair, score in zip(pairs, scores, strict=True) if not math.isfinite(score)), None)
        if wrong is not None:
            raise InputError(
                f"the likelihood of the query {wrong[0]!r} given passage {wrong[1]!r} is not finite",
                hint="use precision fp32; if it persists, the model itself is broken: look at its training curves",
            )
